"""The figures of a version are computed by pycocotools, too, from the detections that travel with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.evaluation import evaluate
from yolofleet.evaluation.reference_ap import reference_name
from yolofleet.registry import comparison, verify
from yolofleet.registry.evaluation_record import (
    Evaluation,
    EvaluationRecord,
    EvaluationSettings,
    confirm_figures,
    evaluate_package,
)
from yolofleet.registry.register import register_detector
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
    for later in ("rectangular", "precision"):
        del document["settings"][later]
    assert EvaluationRecord.parse(document, source="judgement.json") == evaluated.record
    assert evaluated.record.settings.facts() == {"protocol": "square", "precision": "fp32"}


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        ({}, "square"),
        ({"iou": 0.7}, "square"),
        ({"rectangular": True}, "published"),
        ({"rectangular": True, "precision": "fp16"}, "published"),
        ({"rectangular": True, "iou": 0.7}, "rectangular"),
        ({"rectangular": True, "max_detections": 100}, "rectangular"),
    ],
)
def test_only_the_published_thresholds_make_the_published_protocol(settings: dict[str, Any], protocol: str) -> None:
    assert EvaluationSettings(image_size=64, **settings).protocol == protocol


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_version_is_verified_by_the_protocol_that_it_was_evaluated_by(
    precision: str, trained_package: Path, known_data: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The precision of a GPU is verified on a CPU in that precision; a square evaluation is another version."""
    monkeypatch.setattr(evaluate, "evaluation_precision", lambda protocol, device: precision)
    made = evaluate_package(trained_package, str(known_data), "cpu", protocol="published")
    version = register_detector(trained_package, "shapes", tracking_uri, made)
    facts = {"evaluation.protocol": "published", "evaluation.precision": precision}
    assert facts.items() <= version.facts.items()
    assert made.evaluation is not None and made.evaluation.record.settings.rectangular
    settings: list[EvaluationSettings] = []
    again = verify.evaluate_detector

    def recorded(*arguments: Any) -> Evaluation:
        settings.append(arguments[2])
        return again(*arguments)

    monkeypatch.setattr(verify, "evaluate_detector", recorded)
    found = verify.verify(tracking_uri, version)
    assert found.verdict == "passed" and settings == [made.evaluation.record.settings]
    (ap,) = (claim for claim in found.claims if claim.name == "AP")
    assert ap.detail.endswith(f"by the published protocol in {precision}")
    monkeypatch.undo()
    square = evaluate_package(trained_package, str(known_data), "cpu")
    assert register_detector(trained_package, "shapes", tracking_uri, made).number == version.number
    other = register_detector(trained_package, "shapes", tracking_uri, square)
    assert other.number != version.number and other.facts["evaluation.protocol"] == "square"
    assert comparison._common_settings(version, other) is None
    common = comparison._common_settings(version, version)
    assert common is not None and (common.protocol, common.precision) == ("published", precision)
