"""A made-up run or search on the terminal, for tests: ``python displayed_run.py run|search|wait``."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolofleet.cli.progress import show_progress, show_run
from yolofleet.core.terminal import SCREEN, doing, note

NUM_STEPS = 118_000
STAYS_SECONDS = 300.0
SPACE: dict[str, Any] = {
    "name": "small",
    "job": {"name": "base", "model": {"name": "yolov7-tiny"}, "data": {"train": "train", "val": "val"}},
    "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}, "model.depth": {"uniform": [0.5, 2.0]}},
    "objectives": [{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}],
    "budget": {"trials": 8, "gpu_hours": 2},
}


def step_row(step: int) -> dict[str, Any]:
    losses = {"loss": 0.1285, "loss_box": 0.0678, "loss_objectness": 0.0064, "loss_classification": 0.0377}
    return {"step": step, **losses, "learning_rate": 0.00321, "samples_per_second": 152.3, "data_wait_share": 0.02}


def stay(name: str) -> None:
    """Wait until the test makes a file of this name in the current folder."""
    end = time.monotonic() + STAYS_SECONDS
    while not Path(name).exists() and time.monotonic() < end:
        time.sleep(0.05)


def show_a_run() -> None:
    rows: deque[dict[str, Any]] = deque()
    with show_run(rows, NUM_STEPS, 0, "starting Ray"):
        stay("ray")
        rows.append({"kind": "starting", "workers": 2})
        stay("workers")
        rows.append({"kind": "start", "step": 0, "workers": 2})
        rows.extend(step_row(step) for step in (1, 1000))
        rows.append({"step": 1000, "val_AP50": 0.5, "val_AP": 0.3124, "val_loss": 0.2})
        while rows:
            time.sleep(0.05)
        rows.append(step_row(2000))
        rows.append({"kind": "evaluating", "step": 2000})
        stay("end")


def show_a_search() -> None:
    from yolofleet.cli.tune_display import Live, SearchDisplay
    from yolofleet.search.history import Observation
    from yolofleet.search.space import Space
    from yolofleet.search.trials import Measurement, Trials
    from yolofleet.specs.search import SearchSpec

    spec = SearchSpec.parse(SPACE, source="space.yaml")
    trials = Trials()
    session: Any = SimpleNamespace(spec=spec, space=Space(spec, source="space.yaml"))
    display = SearchDisplay(session, trials)
    for number in range(4):
        values = {"hyperparameters.lr0": 0.0123456, "model.depth": 1.25 + number / 8}
        trials.suggest(Observation(values, {"gflops": 10.0 + number}))
        if number < 3:
            trials.measure(number, Measurement(0, 1.0, 10, {"val_AP": 0.123456 + number / 100}, 360.0))
        trials.end(number, "completed" if number < 3 else "failed: out of memory")
    busy = trials.suggest(Observation({"hyperparameters.lr0": 0.02, "model.depth": 0.75}, {"gflops": 8.0})).number
    with SCREEN.drawing(lambda width: display.lines({(busy, 0): Live(0.4, {"val_AP": 0.2})}, 10, width)):
        stay("end")


def show_a_wait() -> None:
    doing("evaluating the deployed model of step 1000 on 5,000 images")
    note("a line that stays")
    stay("evaluated")
    with show_progress("sharding", 5000) as advance:
        advance(1250)
        stay("end")


if __name__ == "__main__":
    with SCREEN.live("yolofleet"):
        {"run": show_a_run, "search": show_a_search, "wait": show_a_wait}[sys.argv[1]]()
