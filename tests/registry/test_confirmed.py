"""The figures of a version are computed by pycocotools, too, from the detections that travel with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yolofleet.evaluation.reference_ap import reference_name
from yolofleet.registry.evaluation_record import Judged, Judgement, confirmed, judged_package
from yolofleet.registry.versions import RegistryError


@pytest.fixture(scope="module")
def evaluated(trained_package: Path, known_data: Path) -> Judged:
    return judged_package(trained_package, str(known_data), "cpu")


def test_figures_that_pycocotools_computes_are_confirmed(evaluated: Judged) -> None:
    assert evaluated.judgement.confirmed_by is None
    found = confirmed(evaluated).judgement
    assert found.confirmed_by == reference_name()
    assert found.figures == evaluated.judgement.figures


def test_figures_or_detections_that_were_changed_are_refused_with_both_values(evaluated: Judged) -> None:
    ap = evaluated.judgement.figures["AP"]
    assert ap is not None
    figures = {**evaluated.judgement.figures, "AP": ap + 1e-9}
    other_figures = replace(evaluated, judgement=evaluated.judgement.model_copy(update={"figures": figures}))
    with pytest.raises(RegistryError, match=f"AP is {ap + 1e-9!r}, {reference_name()} computes {ap!r}"):
        confirmed(other_figures)
    moved = replace(evaluated.detections, boxes=evaluated.detections.boxes + np.array([5.0, 5.0, 0.0, 0.0]))
    with pytest.raises(RegistryError, match=f"AP is {ap!r}, {reference_name()} computes"):
        confirmed(replace(evaluated, detections=moved))


@pytest.mark.parametrize("change", [{"data": "gone"}, {"manifest_sha256": "0" * 64}], ids=["gone", "other data"])
def test_without_its_data_nothing_is_confirmed(evaluated: Judged, change: dict[str, str]) -> None:
    left = replace(evaluated, judgement=evaluated.judgement.model_copy(update=change))
    assert confirmed(left) == left


def test_what_was_written_before_is_read(evaluated: Judged) -> None:
    document = evaluated.judgement.model_dump(mode="json")
    del document["confirmed_by"]
    assert Judgement.parse(document, source="judgement.json") == evaluated.judgement
