"""Every piece of Python that the pages show runs as it stands, but for sizes and the device."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from system.pages import PAGES, ROOT
from system.shell import Shell

pytestmark = [pytest.mark.system, pytest.mark.slow]
GIVEN = {
    "label-assignment.md": "import torch\nimages = torch.rand(2, 3, 128, 128)\n"
    "targets = torch.tensor([[0, 3, 0.5, 0.5, 0.4, 0.6], [1, 7, 0.3, 0.6, 0.2, 0.2]])\n",
    "models.md": "import torch\nimages = torch.rand(2, 3, 64, 64)\n",
    "operations.md": "import os\nos.environ['MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS'] = 'true'\n",  # no DNS is asked
    "predict.md": "import numpy\narray = numpy.zeros((64, 96, 3), dtype=numpy.uint8)\n",
}
"""What a reader has at hand, by page."""
OTHERWISE = {'"cuda"': '"cpu"', "1280": "128", "@champion": "@candidate"}


def examples() -> list[Any]:
    """(page, code) of every block of Python."""
    return [
        pytest.param(page.name, code, id=f"{page.name}-{number}")
        for page in PAGES
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    ]


@pytest.mark.parametrize(("page", "code"), examples())
def test_an_example_runs(page: str, code: str, household: Shell) -> None:
    for shown, here in OTHERWISE.items():
        code = code.replace(shown, here)
    done = subprocess.run(
        [sys.executable, "-c", GIVEN.get(page, "") + code],
        cwd=household.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_all_pages_with_python_are_known() -> None:
    assert {*GIVEN} <= {parameter.values[0] for parameter in examples()}
    assert all((ROOT / "docs" / page).is_file() for page in GIVEN)
