"""Many requests at once against a served model, some of them bad: every answer right, no crash, no leak."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"
MOST_GROWTH = 0.25


@pytest.mark.parametrize("in_torch", [False, True])
def test_under_fire(in_torch: bool) -> None:
    spec = importlib.util.spec_from_file_location("serving_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    serving = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = serving
    spec.loader.exec_module(serving)
    result = serving.measured(None, 200, 12, in_torch=in_torch)
    assert result["wrong"] == 0 and result["bad"] > 0, result
    assert set(result["statuses"]) == {"200", "400"}
    assert result["memory_growth"] < MOST_GROWTH, result
