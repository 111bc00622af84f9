"""A reader follows an image, a job, a cluster and a model through few files."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from system.pages import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow]
MOST_FILES = {"tar_to_loss": 28, "yaml_to_step": 93, "ray": 14, "promote": 101}
"""By journey of `benchmarks/journeys.py`; a change that opens more files has to say why it is worth it.

Two or three of `yaml_to_step` are entered only if the mirror's thread reaches MLflow before the first step ends; else
they count under `ray`. Six are there since run directories, locks and rows of logs that strangers wrote are checked.
"""


@pytest.fixture(scope="module")
def entered() -> dict[str, Any]:
    """The document of the benchmark."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "journeys.py"), "--json"],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("journey", MOST_FILES)
def test_a_journey_enters_few_files(journey: str, entered: dict[str, Any]) -> None:
    files = entered[f"{journey}_list"]
    assert 0 < len(files) <= MOST_FILES[journey], "\n".join(files)


@pytest.mark.parametrize(
    ("journey", "stops"),
    [
        ("tar_to_loss", ("data/stream.py", "losses/detection_loss.py")),
        ("yaml_to_step", ("cli/train.py", "training/loop/train.py", "data/stream.py", "losses/detection_loss.py")),
        ("promote", ("cli/train.py", "cli/proof.py", "cli/promotion.py")),
    ],
)
def test_a_journey_goes_all_the_way(journey: str, stops: tuple[str, ...], entered: dict[str, Any]) -> None:
    assert {*stops} <= {*entered[f"{journey}_list"]}
