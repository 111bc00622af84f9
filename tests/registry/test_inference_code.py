"""The inference code is found by its imports, complete, small, and under a name of its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from yolofleet.registry.inference_code import (
    InferenceCodeError,
    collect_inference_code,
    pin_requirements,
    rewrite_imports,
)
from yolofleet.registry.package import SERVED_MODULE


def test_it_holds_what_inference_needs_and_nothing_else() -> None:
    code = collect_inference_code(SERVED_MODULE)
    packages = {name.partition("/")[0] for name in code.files}
    assert {"registry/served_detector.py", "evaluation/detector.py", "evaluation/nms.py", "data/decode.py"} <= {
        *code.files
    }
    assert packages.isdisjoint({"training", "losses", "tracking", "cli", "search", "cluster", "storage.py"})
    requirements = pin_requirements(code.imports)
    names = {requirement.partition("==")[0].lower() for requirement in requirements}
    assert {"torch", "safetensors", "mlflow", "numpy", "pillow", "simplejpeg"} <= names
    assert names.isdisjoint({"ray", "boto3", "webdataset", "pycocotools", "matplotlib"})
    assert all(re.fullmatch(r"[\w.-]+==[0-9][^+\s]*", requirement) for requirement in requirements)


def test_no_source_imports_yolofleet_under_its_own_name() -> None:
    code = collect_inference_code(SERVED_MODULE)
    for name, source in code.files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] != "yolofleet", name
            elif isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] != "yolofleet" for alias in node.names), name


def test_the_name_follows_the_content(tmp_path: Path) -> None:
    code = collect_inference_code(SERVED_MODULE)
    assert re.fullmatch(r"yolofleet_inference_[0-9a-f]{12}", code.package)
    assert collect_inference_code(SERVED_MODULE).package == code.package
    assert collect_inference_code("yolofleet.core.errors").package != code.package
    folder = code.write(tmp_path)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")} == set(code.files)


def test_every_import_form_is_renamed() -> None:
    source = (
        "from yolofleet.models import deploy\n"
        "import torch, json\n"
        "text = 'from yolofleet.models import deploy'\n"
        "def f():\n"
        "    from yolofleet import __version__\n"
        "    from  yolofleet.data.decode import (\n        decode_image,\n    )\n"
    )
    assert rewrite_imports(source, "mine", "m") == (
        "from mine.models import deploy\n"
        "import torch, json\n"
        "text = 'from yolofleet.models import deploy'\n"
        "def f():\n"
        "    from mine import __version__\n"
        "    from  mine.data.decode import (\n        decode_image,\n    )\n"
    )


@pytest.mark.parametrize("source", ["import yolofleet.models\n", "import yolofleet\n", "from . import deploy\n"])
def test_forms_that_cannot_be_renamed_are_refused(source: str) -> None:
    with pytest.raises(InferenceCodeError, match="write"):
        rewrite_imports(source, "mine", "m")


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(InferenceCodeError, match="no module"):
        collect_inference_code("yolofleet.evaluation.nonsense")
