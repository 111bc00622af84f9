"""Promotion: the gates of a policy, asked of a version, then the alias; and the rollback.

Each gate answers with the numbers that decided it. What cannot be known has not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural
from yolofleet.registry.alias_history import AliasChange, move_alias, rollback_target
from yolofleet.registry.comparison import evaluate_version
from yolofleet.registry.evaluation_record import EvaluationRecord
from yolofleet.registry.proof import LINEAGE_FOLDER
from yolofleet.registry.verify import Verification, verify
from yolofleet.registry.versions import ModelTags, RegistryError, Version, check_alias, list_versions
from yolofleet.specs.promotion import AgainstChampion, ClassFloors, LatencyCeiling, PromotionPolicy, ProofGate

if TYPE_CHECKING:
    import torch

    from yolofleet.evaluation.bootstrap import Differences

MOST_NAMED = 5


@dataclass(frozen=True)
class Gate:
    """The answer of one gate."""

    name: str
    passed: bool
    detail: str
    """The numbers, and the cure if it has not passed."""


def proof_gate(policy: ProofGate, verification: Verification) -> Gate:
    """Every claim was redone and holds; those that the policy names may be impossible."""
    blocking = [
        *verification.with_outcome("failed"),
        *(c for c in verification.with_outcome("not possible") if c.name not in policy.may_be_impossible),
    ]
    if not blocking:
        return Gate("proof", True, f"{len(verification.with_outcome('passed'))} claims hold")
    return Gate("proof", False, "; ".join(f"{claim.name} {claim.outcome}: {claim.detail}" for claim in blocking))


def lineage_gate(verification: Verification) -> Gate:
    """The training data is known, down to the shards."""
    digest = verification.trained_on
    manifests = next((claim for claim in verification.claims if claim.name == "data manifests"), None)
    if digest is None or manifests is None:
        reason = "the manifest of the data that it was trained on is not in the version"
        return Gate("lineage", False, f"{reason}: register the run, not a folder")
    if manifests.outcome != "passed":
        return Gate("lineage", False, f"the manifest of its data ({LINEAGE_FOLDER}/) does not hold: {manifests.detail}")
    return Gate("lineage", True, f"trained on data {digest[:12]}..., its manifest is in the version")


def champion_gate(policy: AgainstChampion, differences: Differences, champion: str) -> Gate:
    """The lower end of the difference's confidence interval is above the largest drop allowed."""
    figure = differences.figure(policy.figure)
    if figure.difference is None or figure.low is None or figure.high is None:
        return Gate("against champion", False, f"{policy.figure} cannot be measured on this data")
    numbers = (
        f"{policy.figure} {figure.second:.4f} against {figure.first:.4f} of {champion}: {figure.difference:+.4f}, "
        f"{policy.confidence:.0%} interval {figure.low:+.4f} to {figure.high:+.4f} over "
        f"{plural(differences.num_images, 'image')}"
    )
    if figure.low >= -policy.largest_drop:
        return Gate("against champion", True, f"{numbers}; a drop of {policy.largest_drop:g} is allowed")
    likely = "worse" if figure.high < 0 else "the drop may be larger than allowed; more images narrow the interval"
    return Gate("against champion", False, f"{numbers}; the lower end is below -{policy.largest_drop:g}: {likely}")


def class_gate(policy: ClassFloors, record: EvaluationRecord | None) -> Gate:
    """Each class reaches its floor."""
    if record is None:
        return Gate("classes", False, "it could not be evaluated")
    if problems := list(_floor_problems(policy, record)):
        return Gate("classes", False, and_more(problems, MOST_NAMED, separator="; "))
    return Gate("classes", True, "every class reaches its floor")


def _floor_problems(policy: ClassFloors, record: EvaluationRecord) -> Iterator[str]:
    known = [entry.name for entry in record.classes]
    for name in sorted(policy.classes.keys() - set(known)):
        yield f"there is no class '{name}' (there is {', '.join(known[:MOST_NAMED])})"
    for entry in record.classes:
        floor = policy.classes.get(entry.name, policy.every)
        if floor is None:
            continue
        if entry.ap is None:
            if entry.name in policy.classes:
                yield f"{entry.name} has no object in the validation set"
        elif entry.ap < floor:
            yield f"{entry.name} has AP {entry.ap:.4f}, its floor is {floor:g}"


def latency_gate(policy: LatencyCeiling, verification: Verification) -> Gate:
    """An image takes no longer than allowed, on this machine."""
    latency = verification.latency
    if latency is None:
        return Gate("latency", False, "the detector does not load")
    numbers = f"{latency.milliseconds:.1f} ms on {latency.device}, allowed are {policy.milliseconds:g} ms"
    return Gate("latency", latency.milliseconds <= policy.milliseconds, numbers)


@dataclass(frozen=True)
class GateReport:
    """The answers of all gates for a version that is promoted to an alias."""

    version: Version
    alias: str
    champion: Version | None
    """The version that has the alias now; None for none."""
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate has passed."""
        return all(gate.passed for gate in self.gates)

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "uri": self.version.uri,
            "alias": self.alias,
            "champion": self.champion.uri if self.champion is not None else None,
            "passed": self.passed,
            "gates": [asdict(gate) for gate in self.gates],
        }


def check_gates(
    tracking_uri: str,
    name: str,
    number: int,
    alias: str,
    policy: PromotionPolicy,
    device: torch.device | str = "cpu",
    *,
    data: str | None = None,
    on_images: Callable[[int], None] | None = None,
) -> GateReport:
    """Ask the gates of a policy about a version; nothing is changed.

    Args:
        tracking_uri: The MLflow server or database.
        name: The registered model.
        number: The version.
        alias: The alias that it is promoted to.
        policy: The gates.
        device: Where to compute.
        data: Where the validation set is now; by default where it was.
        on_images: Called with a number of images each time that some were evaluated.

    Raises:
        RegistryError: There is no such version, it has the alias already, or no alias can have this name.
    """
    check_alias(alias)
    versions = list_versions(tracking_uri, name)
    version = next((version for version in versions if version.number == number), None)
    if version is None:
        raise RegistryError(f"{name} has no version {number}; there is: {[version.number for version in versions]}")
    champion = next((version for version in versions if alias in version.aliases), None)
    if champion == version:
        raise RegistryError(f"version {number} is @{alias} already: there is nothing to promote")
    verification = verify(tracking_uri, version, device, data=data, on_images=on_images)
    gates: list[Gate] = []
    if policy.proof is not None:
        gates.append(proof_gate(policy.proof, verification))
    if policy.lineage:
        gates.append(lineage_gate(verification))
    if policy.against_champion is not None:
        gates.append(
            _compare_with_champion(policy.against_champion, tracking_uri, champion, verification, device, on_images)
        )
    if policy.class_floors is not None:
        evaluation = verification.evaluation
        gates.append(class_gate(policy.class_floors, evaluation.record if evaluation is not None else None))
    if policy.latency is not None:
        gates.append(latency_gate(policy.latency, verification))
    return GateReport(version, alias, champion, tuple(gates))


def _compare_with_champion(
    policy: AgainstChampion,
    tracking_uri: str,
    champion: Version | None,
    verification: Verification,
    device: torch.device | str,
    on_images: Callable[[int], None] | None,
) -> Gate:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import paired_bootstrap

    evaluation = verification.evaluation
    if champion is None:
        return Gate("against champion", True, "there is no champion yet")
    if evaluation is None:
        return Gate("against champion", False, "it could not be evaluated")
    try:
        dataset = ShardDataset(evaluation.record.data)
        settings = evaluation.record.settings
        other = evaluate_version(tracking_uri, champion, dataset, device, on_images, thresholds_of=settings)
    except UserError as error:
        return Gate("against champion", False, f"{champion.uri} cannot be evaluated on this data: {error}")
    differences = paired_bootstrap(
        dataset.annotations(),
        other.detections,
        evaluation.detections,
        num_replicates=policy.replicates,
        confidence=policy.confidence,
        seed=policy.seed,
    )
    return champion_gate(policy, differences, champion.uri)


def promote(tracking_uri: str, report: GateReport, reason: str, *, forced: bool = False) -> AliasChange:
    """Point the alias to a version, if it still points to the champion that the gates compared it with.

    Raises:
        RegistryError: A gate is closed and the promotion is not forced.
        PromotionLostError: Another promotion was first.
    """
    if not report.passed and not forced:
        raise RegistryError(f"{report.version.uri} does not pass the gates")
    return move_alias(
        ModelTags(tracking_uri, report.version.name),
        report.alias,
        report.version.number,
        expected=report.champion.number if report.champion is not None else None,
        action="promote",
        reason=reason,
        forced=forced and not report.passed,
    )


def roll_back(tracking_uri: str, name: str, alias: str, reason: str) -> AliasChange:
    """Point an alias back to the version that it pointed to before, which passed its gates once.

    Raises:
        RegistryError: There is nothing to go back to.
        PromotionLostError: A promotion was first.
    """
    check_alias(alias)
    list_versions(tracking_uri, name)  # raises where there is no such model
    store = ModelTags(tracking_uri, name)
    tags, aliases = store.read()
    target = rollback_target(tags, aliases, alias)
    return move_alias(store, alias, target, expected=aliases[alias], action="rollback", reason=reason)
