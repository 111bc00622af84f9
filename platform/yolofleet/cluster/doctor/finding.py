"""What the doctor says: a line for each thing that was looked at, and the report of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED

Verdict = Literal["ok", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "fail")
CLUSTER = "cluster"
"""The place of what is no single node's."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        place: The node's name, or `CLUSTER`.
        subject: What was looked at.
        verdict: Whether it works (ok), works with a drawback (warn) or does not (fail).
        seen: What was found there.
        cure: What to do about it; None where all is well.
        measured: Numbers behind it, by name with unit.
    """

    place: str
    subject: str
    verdict: Verdict
    seen: str
    cure: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.verdict == "ok") != (self.cure is None):
            raise ValueError(f"{self.subject}: a line that is not ok has a cure, and no other")


@dataclass(frozen=True)
class Report:
    """Everything that was looked at.

    Attributes:
        lines: A line for each thing.
        left_out: What was not looked at, and why.
    """

    lines: Sequence[Line]
    left_out: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        """1 if any line fails."""
        return EXIT_WORK_FAILED if self.count("fail") else EXIT_DONE

    @property
    def places(self) -> list[str]:
        """The places in the order of their first lines, the cluster before its nodes."""
        found = dict.fromkeys(line.place for line in self.lines)
        return sorted(found, key=lambda place: place != CLUSTER)

    def count(self, verdict: Verdict) -> int:
        """Return how many lines have a verdict."""
        return sum(line.verdict == verdict for line in self.lines)

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            **{verdict: self.count(verdict) for verdict in VERDICTS},
            "lines": [asdict(line) | {"measured": dict(line.measured)} for line in self.lines],
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Report:
        """Return the report that `document` describes."""
        return cls(tuple(Line(**line) for line in document["lines"]), tuple(document["left_out"]))
