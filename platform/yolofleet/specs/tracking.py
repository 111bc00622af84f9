"""Where a run is tracked, and who is notified of it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from yolofleet.specs.base import Spec, Url


class TrackingSpec(Spec):
    """Where MLflow is, and under which names the run is tracked."""

    uri: Url | None = None
    """MLflow tracking URI; by default an sqlite database beside the runs when storage is a folder."""
    experiment: Annotated[str, Field(min_length=1)] = "yolofleet"
    """MLflow experiment."""
    register_as: Annotated[str, Field(min_length=1, pattern=r"^[^/:]+$")] | None = None
    """Name in the Model Registry; without one the model stays in the run directory."""
    when_away: Literal["fail", "spool"] = "fail"
    """If MLflow does not answer at the start: 'fail' refuses to start; 'spool' trains and sends later."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into `tensorboard/` in the run directory."""


def _variables(names: Any) -> Any:
    """Check the whole list at once: a message of pydantic's would show what stands there."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not 0 < len(names) <= 20:
        raise ValueError("takes a list of 1 to 20 names of environment variables")
    if not all(isinstance(name, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", name) for name in names):
        raise ValueError(
            "takes names of environment variables, which hold the addresses where the run's command runs, e.g. "
            "SLACK_WEBHOOK: an address is a secret, and a spec is kept for all to read"
        )
    return tuple(names)


class NotifySpec(Spec):
    """Who is notified, and of what."""

    to: Annotated[tuple[str, ...], BeforeValidator(_variables)]
    """Names of environment variables with an address each: a webhook (https://...), or one of Apprise (slack://...)."""
    on: Annotated[tuple[Literal["end", "failure", "waiting", "champion"], ...], Field(min_length=1)] = (
        "end",
        "failure",
        "waiting",
        "champion",
    )
    """The end of the work, its failure, a long wait for room; of a promotion: a new version at the alias."""
    waiting_minutes: Annotated[float, Field(gt=0)] = 30.0
    """Waits for room that are shorter than this are not reported."""
