"""What users and projects have of their quotas while turns are given out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from yolofleet.core.text import plural
from yolofleet.specs.cluster import QuotaSpec

if TYPE_CHECKING:
    from yolofleet.training.supervision.turns import Spent, Ticket


class QuotaUse:
    """What users and projects have, against their quotas."""

    def __init__(self, quotas: QuotaSpec, spent: Spent) -> None:
        self._quotas = quotas
        self._spent = spent
        self._used: Counter[tuple[str, str, str]] = Counter()

    def add(self, ticket: Ticket, slots: int) -> None:
        """Count slots that a ticket gets."""
        for kind, amount in ticket.wanted.items():
            for scope, name, _ in self._quotas.limits(ticket.user, ticket.project, kind):
                self._used[scope, name, kind] += slots * amount  # type: ignore[assignment]  # amounts may be fractions

    def allowed(self, ticket: Ticket) -> tuple[int, str]:
        """Return how many more slots the quotas allow, and which quota is the narrowest."""
        for scope, name, hours in self._hour_limits(ticket):
            if self._spent.problem is not None:
                return 0, self._spent.problem
            if (used := self._spent.hours.get((scope, name), 0.0)) >= hours:
                allowed = f"{plural(hours, 'GPU hour', form='g')} that its quota allows"
                span = plural(self._spent.days, "day", form="g")
                return 0, f"{scope} {name} has used {used:.1f} of {allowed} in {span}"
        narrowest, reason = max(ticket.most, ticket.fewest), ""
        for kind, amount in ticket.wanted.items():
            for scope, name, limit in self._quotas.limits(ticket.user, ticket.project, kind):
                used = self._used[scope, name, kind]
                more = max(0, int((limit - used) / amount + 1e-9))
                if more < narrowest:
                    narrowest, reason = more, f"{scope} {name} has {used:g} of {limit:g} {kind} that its quota allows"
        return narrowest, reason

    def most(self, ticket: Ticket) -> int:
        """Return how many slots the quotas would allow if nothing else of the user and the project ran."""
        limits = [
            int(limit / amount + 1e-9)
            for kind, amount in ticket.wanted.items()
            for _, _, limit in self._quotas.limits(ticket.user, ticket.project, kind)
        ]
        limits += [0 for _, _, hours in self._hour_limits(ticket) if hours == 0]
        return min(limits, default=ticket.fewest)

    def _hour_limits(self, ticket: Ticket) -> list[tuple[str, str, float]]:
        """Return what limits the GPU hours of a ticket; nothing where it wants no GPU."""
        wants = ticket.wanted.get("GPU", 0.0) > 0
        return [*self._quotas.hour_limits(ticket.user, ticket.project)] if wants else []
