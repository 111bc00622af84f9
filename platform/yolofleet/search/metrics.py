"""Which metrics a trial of this platform reports, so that a wrong name is told before anything trains."""

from __future__ import annotations

import difflib
from typing import get_args

from yolofleet.errors import UserError
from yolofleet.evaluation.average_precision import FIGURE_NAMES
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.search_parts import Figure

TRAINING_METRICS = ("loss", "loss_box", "loss_objectness", "loss_classification", "samples_per_second")


def reported_metrics() -> tuple[str, ...]:
    """Return the metrics that a trial reports."""
    return (*(f"val_{name}" for name in FIGURE_NAMES), *TRAINING_METRICS)


def check_metrics(spec: SearchSpec, *, source: str) -> None:
    """Refuse an objective that no trial ever reports.

    Raises:
        UserError: Names the objective, the nearest metric, and all there are.
    """
    measured = reported_metrics()
    known = (*measured, *get_args(Figure))
    for objective in spec.objectives:
        if objective.metric in known:
            continue
        near = difflib.get_close_matches(objective.metric, known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"{source}: objectives: no trial reports '{objective.metric}'; {hint}Reported: {', '.join(measured)}; "
            f"known beforehand: {', '.join(get_args(Figure))}"
        )
    if not any(objective.metric in measured for objective in spec.objectives):
        raise UserError(
            f"{source}: objectives: all are known without training, so nothing needs to be searched; "
            "'yolofleet models list' shows them. Add one that is measured, e.g. val_AP"
        )
