from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import yolofleet
import yolofleet.api
from yolofleet.core.errors import EXTRAS, is_installed

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "yolofleet"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_everything_that_is_no_code_is_packed_into_the_wheel() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["yolofleet"]
    assert {"jobs", "search_spaces"} <= {path.name for path in (PACKAGE / "specs").iterdir() if path.is_dir()}
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert any(name.startswith("models/zoo/") for name in data)
    assert "py.typed" in data
    assert [name for name in data if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def pins(path: Path) -> dict[str, str]:
    """The versions that a file of requirements names, by package."""
    found = re.findall(r"^([\w.-]+)==([\w.+-]+)", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_every_pin_has_the_hashes_of_its_files() -> None:
    """What is installed is what constraints.txt says, and no line of it goes without a hash."""
    locked: dict[str, str] = {}
    for name in ("build", "cuda", "run", "dev", "notify"):
        path = ROOT / "requirements" / f"{name}.txt"
        blocks = re.split(r"\n(?=\S)", path.read_text())[1:]
        assert blocks and all("--hash=sha256:" in block for block in blocks), path
        locked |= pins(path)
    wanted = pins(ROOT / "constraints.txt")
    assert {name: locked.get(name) for name in wanted} == wanted


def test_both_builds_of_torch_are_listed() -> None:
    """Under one version pip would take PyPI's CUDA build, whose hash it knows before the download: so they are two."""
    version = pins(ROOT / "constraints.txt")["torch"]
    cpu, cuda = (pins(ROOT / "requirements" / f"{name}.txt") for name in ("cpu", "cuda"))
    assert cpu == {"torch": f"{version}+cpu"} and cuda["torch"] == version and "triton" in cuda
    assert not (cpu.keys() | cuda.keys()) & pins(ROOT / "requirements" / "run.txt").keys()


def test_every_dependency_is_pinned() -> None:
    pinned = pins(ROOT / "constraints.txt").keys()
    project = SETTINGS["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {entry.split(">")[0].split("[")[0].split("=")[0].strip().lower().replace("_", "-") for entry in wanted}
    assert names - pinned == {"yolofleet"}  # the extra all names the others


def test_the_extra_that_a_message_names_brings_the_package() -> None:
    extras = SETTINGS["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.match(rf"{package}\b", entry) for entry in extras[extra]), package
        assert not any(re.match(rf"{package}\b", entry) for entry in SETTINGS["project"]["dependencies"])
    assert {*re.findall(r"\w+", extras["all"][0])} == {"yolofleet", *extras} - {"all", "dev", "notify", "tensorboard"}


def test_a_folder_is_no_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_of_a_user" / "train").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("folder_of_a_user") and is_installed("numpy")


def test_the_changelog_knows_the_version() -> None:
    assert f"\n## {yolofleet.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", yolofleet.__version__)


def test_the_python_api_is_there_and_nothing_heavy_before_its_use() -> None:
    """The package's names, its stub and `yolofleet.api` say the same; ``import yolofleet`` imports none of it."""
    code = "import sys, yolofleet; print([name for name in ('numpy', 'torch', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    names = {*yolofleet.__all__} - {"__version__"}
    assert names == {*re.findall(r"import (\w+) as \1", (PACKAGE / "__init__.pyi").read_text())}
    assert names == {*yolofleet.api.__all__} and names <= {*dir(yolofleet)}
    for name in names:
        assert callable(getattr(yolofleet, name)) and getattr(yolofleet, name).__doc__
    assert yolofleet.train is yolofleet.api.train and callable(yolofleet.export)
    with pytest.raises(AttributeError, match="trian"):
        _ = yolofleet.trian


def test_every_file_says_nothing_of_the_machine_that_made_it() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *PACKAGE.rglob("*.py"), ROOT / "Makefile"]:
        text = path.read_text()
        assert f"{Path.home()}/" not in text, path
        assert f"{ROOT}/" not in text, path
