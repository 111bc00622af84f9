"""The gates of a promotion: each asked of the new version, each answered with the numbers that decided it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolofleet.registry.judgement import Judgement
from yolofleet.registry.proof import LINEAGE_FOLDER
from yolofleet.registry.verify import Verification
from yolofleet.specs.promotion import AgainstChampion, ClassFloors, LatencyCeiling, ProofGate

if TYPE_CHECKING:
    from yolofleet.evaluation.bootstrap import Differences

MOST_NAMED = 5


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        name: What is asked.
        passed: The answer. What cannot be known has not passed.
        detail: The numbers, and what to do if it has not passed.
    """

    name: str
    passed: bool
    detail: str


def proof_gate(policy: ProofGate, found: Verification) -> Gate:
    """Every claim was redone and holds; those that the policy names may be impossible."""
    blocking = [
        *found.named("failed"),
        *(claim for claim in found.named("not possible") if claim.name not in policy.may_be_impossible),
    ]
    if not blocking:
        return Gate("proof", True, f"{len(found.named('passed'))} claims hold")
    return Gate("proof", False, "; ".join(f"{claim.name} {claim.outcome}: {claim.detail}" for claim in blocking))


def lineage_gate(found: Verification) -> Gate:
    """The data that it was trained on is known, down to the shards."""
    digest = found.trained_on
    manifests = next((claim for claim in found.claims if claim.name == "data manifests"), None)
    if digest is None or manifests is None:
        reason = "the manifest of the data that it was trained on is not in the version"
        return Gate("lineage", False, f"{reason}: register the run, not a folder")
    if manifests.outcome != "passed":
        return Gate("lineage", False, f"the manifest of its data ({LINEAGE_FOLDER}/) does not hold: {manifests.detail}")
    return Gate("lineage", True, f"trained on data {digest[:12]}..., its manifest is in the version")


def champion_gate(policy: AgainstChampion, differences: Differences, champion: str) -> Gate:
    """The lower end of the difference's confidence interval lies above the largest drop allowed."""
    figure = differences.figure(policy.figure)
    if figure.difference is None or figure.low is None or figure.high is None:
        return Gate("against champion", False, f"{policy.figure} cannot be measured on this data")
    numbers = (
        f"{policy.figure} {figure.second:.4f} against {figure.first:.4f} of {champion}: {figure.difference:+.4f}, "
        f"{policy.confidence:.0%} interval {figure.low:+.4f} to {figure.high:+.4f} over {differences.num_images} images"
    )
    if figure.low >= -policy.largest_drop:
        return Gate("against champion", True, f"{numbers}; a drop of {policy.largest_drop:g} is allowed")
    likely = "worse" if figure.high < 0 else "not surely better than the drop allowed; more images narrow the interval"
    return Gate("against champion", False, f"{numbers}; the lower end is below -{policy.largest_drop:g}: {likely}")


def class_gate(policy: ClassFloors, judgement: Judgement | None) -> Gate:
    """Each class reaches its floor."""
    if judgement is None:
        return Gate("classes", False, "it could not be judged")
    problems = list(_below_floor(policy, judgement))
    if not problems:
        return Gate("classes", True, "every class reaches its floor")
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return Gate("classes", False, "; ".join(problems[:MOST_NAMED]) + more)


def _below_floor(policy: ClassFloors, judgement: Judgement) -> Iterator[str]:
    known = {entry.name: entry for entry in judgement.classes}
    for name in sorted(policy.classes.keys() - known.keys()):
        yield f"there is no class '{name}' (there is {', '.join(list(known)[:MOST_NAMED])})"
    for entry in judgement.classes:
        floor = policy.classes.get(entry.name, policy.every)
        if floor is None:
            continue
        if entry.ap is None:
            if entry.name in policy.classes:
                yield f"{entry.name} has no object in the validation set"
        elif entry.ap < floor:
            yield f"{entry.name} has AP {entry.ap:.4f}, its floor is {floor:g}"


def latency_gate(policy: LatencyCeiling, found: Verification) -> Gate:
    """A picture takes no longer than allowed, here."""
    if found.latency is None:
        return Gate("latency", False, "the detector does not load")
    numbers = f"{found.latency.milliseconds:.1f} ms on {found.latency.device}, allowed are {policy.milliseconds:g} ms"
    return Gate("latency", found.latency.milliseconds <= policy.milliseconds, numbers)
