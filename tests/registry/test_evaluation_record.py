"""The figures of a version are computed by pycocotools, too, from the detections that travel with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yolofleet.evaluation.reference_ap import reference_name
from yolofleet.registry.evaluation_record import Evaluation, EvaluationRecord, confirm_figures, evaluate_package
from yolofleet.registry.versions import RegistryError


@pytest.fixture(scope="module")
def evaluated(trained_package: Path, known_data: Path) -> Evaluation:
    evaluation = evaluate_package(trained_package, str(known_data), "cpu").evaluation
    assert evaluation is not None
    return evaluation


def test_figures_that_pycocotools_computes_are_confirmed(evaluated: Evaluation) -> None:
    assert evaluated.record.confirmed_by is None
    found = confirm_figures(evaluated).record
    assert found.confirmed_by == reference_name()
    assert found.figures == evaluated.record.figures


def test_figures_or_detections_that_were_changed_are_refused_with_both_values(evaluated: Evaluation) -> None:
    ap = evaluated.record.figures["AP"]
    assert ap is not None
    figures = {**evaluated.record.figures, "AP": ap + 1e-9}
    other_figures = replace(evaluated, record=evaluated.record.model_copy(update={"figures": figures}))
    with pytest.raises(RegistryError, match=f"AP is {ap + 1e-9!r}, {reference_name()} computes {ap!r}"):
        confirm_figures(other_figures)
    moved = replace(evaluated.detections, boxes=evaluated.detections.boxes + np.array([5.0, 5.0, 0.0, 0.0]))
    with pytest.raises(RegistryError, match=f"AP is {ap!r}, {reference_name()} computes"):
        confirm_figures(replace(evaluated, detections=moved))


@pytest.mark.parametrize("change", [{"data": "gone"}, {"manifest_sha256": "0" * 64}], ids=["gone", "other data"])
def test_without_its_data_nothing_is_confirmed(evaluated: Evaluation, change: dict[str, str]) -> None:
    left = replace(evaluated, record=evaluated.record.model_copy(update=change))
    assert confirm_figures(left) == left


def test_what_was_written_before_is_read(evaluated: Evaluation) -> None:
    document = evaluated.record.model_dump(mode="json")
    del document["confirmed_by"]
    assert EvaluationRecord.parse(document, source="judgement.json") == evaluated.record
