"""What the doctor reports: one finding for each check on each node, and the report that holds them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED

Verdict = Literal["ok", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "fail")
CLUSTER = "cluster"
"""The node of findings that belong to no single node."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    node: str
    """The node's name, or `CLUSTER`."""
    subject: str
    """What was checked."""
    verdict: Verdict
    """Whether it works (ok), works with a drawback (warn) or does not work (fail)."""
    seen: str
    """What was found there."""
    cure: str | None = None
    """What to do about it; None where the verdict is ok."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """The numbers behind it, by name with unit."""

    def __post_init__(self) -> None:
        if (self.verdict == "ok") != (self.cure is None):
            raise ValueError(f"{self.subject}: a finding has a cure exactly where it is not ok")

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values; the node's key is `place`, as in the reports of older versions."""
        values = asdict(self) | {"measured": dict(self.measured)}
        return {"place": values.pop("node"), **values}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Finding:
        """Return the finding that a document describes."""
        values = dict(document)
        return cls(node=values.pop("place"), **values)


@dataclass(frozen=True)
class Report:
    """All findings of an examination."""

    findings: Sequence[Finding]
    """One for each check."""
    left_out: Sequence[str] = ()
    """What was not checked, and why."""

    @property
    def exit_code(self) -> int:
        """1 if any check fails."""
        return EXIT_WORK_FAILED if self.count("fail") else EXIT_DONE

    @property
    def nodes(self) -> list[str]:
        """The nodes in the order of their first findings; `CLUSTER` comes first."""
        return sorted(dict.fromkeys(finding.node for finding in self.findings), key=lambda node: node != CLUSTER)

    def count(self, verdict: Verdict) -> int:
        """Return how many findings have a verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            **{verdict: self.count(verdict) for verdict in VERDICTS},
            "lines": [finding.document() for finding in self.findings],
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Report:
        """Return the report that a document describes."""
        return cls(tuple(map(Finding.from_document, document["lines"])), tuple(document["left_out"]))
