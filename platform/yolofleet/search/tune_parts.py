"""The two parts that Ray Tune is given: where legs come from, and what runs one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ray.tune import Trainable
from ray.tune.search import Searcher

from yolofleet.search.engine import Engine, Leg, Pause, Result
from yolofleet.search.leg import Order, run_leg
from yolofleet.specs.job import JobSpec

FINISHED: str = Searcher.FINISHED


class EngineSearch(Searcher):  # type: ignore[misc]  # ray has no types
    """Hands the engine's legs to Tune as its trials, and their ends back."""

    def __init__(
        self,
        engine: Engine,
        job_of: Callable[[Leg], JobSpec],
        objectives: list[str],
        told: Callable[[str, Leg, Any], None],
    ) -> None:
        super().__init__()
        self.engine = engine
        self.done = False
        self.problem: Exception | None = None
        self._job_of = job_of
        self._objectives = objectives
        self._told = told
        self._legs: dict[str, Leg] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next leg, None to wait, or FINISHED."""
        if self.problem is not None:
            return FINISHED
        try:
            leg = self.engine.next_leg()
            if isinstance(leg, Leg):
                order = Order(self._job_of(leg).document(), leg.share, self._objectives)
        except Exception as error:  # Tune would only log it; the search ends with it once Tune has returned
            self.problem = error
            return FINISHED
        if leg is Pause.WAIT:
            return None
        if not isinstance(leg, Leg):
            self.done = True
            return FINISHED
        self._legs[trial_id] = leg
        self._told("begin", leg, None)
        return {"order": order.text()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune tells of a leg's only result here too; its end says the same."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take over how a leg ended."""
        leg = self._legs.pop(trial_id, None)
        if leg is None:
            return
        text = None if error or result is None else result.get("leg")
        outcome = result_of(text, "see the messages above")
        try:
            self.engine.complete(leg, outcome)
        except Exception as failure:
            self.problem = self.problem or failure
            return
        self._told("end", leg, outcome)

    def __reduce__(self) -> Any:
        """Leave the engine behind where Tune stores itself: nothing reads that."""
        return (Searcher, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept here: the record is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from here."""


class LegTrainable(Trainable):  # type: ignore[misc]  # ray has no types
    """Runs one leg; its process then takes the next one, so that torch and Ray are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order."""
        self._order = config["order"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another order."""
        self._order = new_config["order"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the leg to its end."""
        return {"leg": json.dumps(run_leg(self._order)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run directory is the truth."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run directory is the truth."""


def result_of(text: str | None, error: str | None) -> Result:
    """Return a leg's result from what its process returned, or from why it is gone."""
    if text is None:
        return Result(failure=f"its process was lost too often ({error or 'no reason is known'})")
    return Result(**json.loads(text))
