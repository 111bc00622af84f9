"""A promotion from its gates to the alias, and the way back.

The gates of a promotion: each asked of the new version, each answered with the numbers that decided it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolofleet.registry.evaluation_record import Judgement
from yolofleet.registry.proof import LINEAGE_FOLDER
from yolofleet.registry.verify import Verification
from yolofleet.specs.promotion import AgainstChampion, ClassFloors, LatencyCeiling, ProofGate

if TYPE_CHECKING:
    from yolofleet.evaluation.bootstrap import Differences
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.registry.alias_history import Reign, move_alias, rollback_target
from yolofleet.registry.comparison import judged_on
from yolofleet.registry.verify import verify
from yolofleet.registry.versions import ModelTags, RegistryError, Version, check_alias, list_versions
from yolofleet.specs.promotion import PromotionPolicy

if TYPE_CHECKING:
    import torch

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
    """An image takes no longer than allowed, here."""
    if found.latency is None:
        return Gate("latency", False, "the detector does not load")
    numbers = f"{found.latency.milliseconds:.1f} ms on {found.latency.device}, allowed are {policy.milliseconds:g} ms"
    return Gate("latency", found.latency.milliseconds <= policy.milliseconds, numbers)


@dataclass(frozen=True)
class Examination:
    """A version in front of the gates.

    Attributes:
        version: The version.
        alias: The alias that it shall have.
        champion: Who has it now; None for nobody.
        gates: The answers.
    """

    version: Version
    alias: str
    champion: Version | None
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate is open."""
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


def examine(
    tracking_uri: str,
    name: str,
    number: int,
    alias: str,
    policy: PromotionPolicy,
    device: torch.device | str = "cpu",
    *,
    data: str | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Examination:
    """Put a version in front of the gates of a policy; nothing is changed.

    Args:
        tracking_uri: The MLflow server or database.
        name: The registered model.
        number: The version.
        alias: What it shall become.
        policy: The gates.
        device: Where to compute.
        data: Where the validation set lies now; by default where it lay.
        on_images: Told how many images were judged, each time some are.

    Raises:
        RegistryError: There is no such version, it has the alias already, or no alias can have this name.
    """
    check_alias(alias)
    known = list_versions(tracking_uri, name)
    version = next((version for version in known if version.number == number), None)
    if version is None:
        raise RegistryError(f"{name} has no version {number}; there is: {[version.number for version in known]}")
    champion = next((version for version in known if alias in version.aliases), None)
    if champion == version:
        raise RegistryError(f"version {number} is @{alias} already: there is nothing to promote")
    found = verify(tracking_uri, version, device, data=data, on_images=on_images)
    gates: list[Gate] = []
    if policy.proof is not None:
        gates.append(proof_gate(policy.proof, found))
    if policy.lineage:
        gates.append(lineage_gate(found))
    if policy.against_champion is not None:
        gates.append(_against(policy.against_champion, tracking_uri, champion, found, device, on_images))
    if policy.class_floors is not None:
        gates.append(class_gate(policy.class_floors, found.judged.judgement if found.judged is not None else None))
    if policy.latency is not None:
        gates.append(latency_gate(policy.latency, found))
    return Examination(version, alias, champion, tuple(gates))


def promote(tracking_uri: str, examined: Examination, reason: str, *, forced: bool = False) -> Reign:
    """Point the alias to an examined version, if it still points to the champion that it was examined against.

    Args:
        tracking_uri: The MLflow server or database.
        examined: The version and its gates.
        reason: Why, for the history.
        forced: Promote in spite of closed gates.

    Raises:
        RegistryError: A gate is closed and it is not forced.
        PromotionLostError: Another promotion was first.
    """
    if not examined.passed and not forced:
        raise RegistryError(f"{examined.version.uri} does not pass the gates")
    return move_alias(
        ModelTags(tracking_uri, examined.version.name),
        examined.alias,
        examined.version.number,
        expected=examined.champion.number if examined.champion is not None else None,
        action="promote",
        reason=reason,
        forced=forced and not examined.passed,
    )


def roll_back(tracking_uri: str, name: str, alias: str, reason: str) -> Reign:
    """Point an alias back to the version that it pointed to before; that one passed its gates once.

    Raises:
        RegistryError: There is nothing to go back to.
        PromotionLostError: A promotion was first.
    """
    check_alias(alias)
    list_versions(tracking_uri, name)
    store = ModelTags(tracking_uri, name)
    tags, aliases = store.read()
    target = rollback_target(tags, aliases, alias)
    return move_alias(store, alias, target, expected=aliases[alias], action="rollback", reason=reason)


def _against(
    policy: AgainstChampion,
    tracking_uri: str,
    champion: Version | None,
    found: Verification,
    device: torch.device | str,
    on_images: Callable[[int], None] | None,
) -> Gate:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import paired_bootstrap

    if champion is None:
        return Gate("against champion", True, "there is no champion yet")
    if found.judged is None:
        return Gate("against champion", False, "it could not be judged")
    try:
        dataset = ShardDataset(found.judged.judgement.data)
        other = judged_on(tracking_uri, champion, dataset, device, on_images, like=found.judged.judgement.settings)
    except UserError as error:
        return Gate("against champion", False, f"{champion.uri} cannot be judged on this data: {error}")
    differences = paired_bootstrap(
        dataset.annotations(),
        other.detections,
        found.judged.detections,
        num_replicates=policy.replicates,
        confidence=policy.confidence,
        seed=policy.seed,
    )
    return champion_gate(policy, differences, champion.uri)
