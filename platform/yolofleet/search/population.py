"""Population based training (Jaderberg et al. 2017): the worst members go on from the best members' weights.

All members train to the same share of the run and are compared; each of the worst takes the checkpoint of one of the
best (weights, averaged weights and momentum, byte for byte) and that one's parameters, changed a little. Members wait
for each other at an exchange, so who copies whom depends on the measurements and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.errors import UserError
from yolofleet.search.ranking import best_first, objective_row
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trials import Exchange, Trial
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import Objective, SchedulerSpec

CHANGEABLE = ("hyperparameters.", "assignment.")
"""Groups of a job that may change between two steps of one run: neither shapes nor the number of steps follow them."""
FIXED = ("hyperparameters.ema_", "hyperparameters.warmup_epochs")


@dataclass(frozen=True)
class Population:
    """A population and its exchanges.

    Attributes:
        spec: Number of exchanges, quantile and factors.
        objectives: What is wanted.
        parameters: The free parameters.
        seed: Decides who copies whom, and how parameters change.
    """

    spec: SchedulerSpec
    objectives: Sequence[Objective]
    parameters: Parameters
    seed: int

    def share(self, exchange: int) -> float:
        """Return the share of the run at which an exchange (from 1) takes place; the one after the last is the end."""
        return min(exchange / (self.spec.rungs + 1), 1.0)

    def exchanges(self, members: Sequence[Trial], number: int) -> dict[int, Exchange]:
        """Return which members change at an exchange, by trial number.

        Args:
            members: All members, each measured at the exchange's share.
            number: Which exchange, from 1.
        """
        share = self.share(number)
        alive = [member for member in members if not member.failed]
        rows = []
        for member in alive:
            measurement = member.at_share(share)
            known = member.observation.figures | (measurement.values if measurement else {})
            rows.append(objective_row(self.objectives, known))
        order = [alive[index] for index in best_first(rows)]
        count = int(len(order) * self.spec.quantile)
        changed = {}
        for member in order[len(order) - count :]:
            random = np.random.default_rng((self.seed, number, member.number))
            donor = order[int(random.integers(count))]
            changed[member.number] = Exchange(number, donor.number, self._changed(donor.values, random))
        return changed

    def _changed(self, values: Values, random: np.random.Generator) -> Values:
        return {
            name: _perturbed(self.parameters.by_name[name], value, self.spec.factors, random)
            for name, value in values.items()
        }


def _perturbed(parameter: Parameter, value: Any, factors: tuple[float, float], random: np.random.Generator) -> Any:
    """Return a value near another: a number times a factor, a choice moved to a neighbour."""
    factor = factors[int(random.integers(2))]
    if parameter.choice is not None:
        place = parameter.options.index(value) + (1 if factor > 1 else -1)
        return parameter.options[min(max(place, 0), len(parameter.options) - 1)]
    low, high = parameter.range
    coordinate = parameter.coordinate(min(max(value * factor, low), high))
    return parameter.at(min(max(coordinate, 0.0), 1.0 - 1e-12))


def check_changeable(paths: Sequence[str]) -> None:
    """Refuse parameters that cannot change while a model trains.

    Args:
        paths: Dotted paths that the space's parameters set.

    Raises:
        UserError: Names the parameter and what may stand in its place.
    """
    for path in paths:
        if not path.startswith(CHANGEABLE) or path.startswith(FIXED):
            raise UserError(
                f"scheduler population: '{path}' cannot change while a model trains, so weights cannot be copied "
                f"across it; only parameters under {' and '.join(group.rstrip('.') for group in CHANGEABLE)} can. "
                "Use scheduler asha for the others"
            )
