"""A promotion from its gates to the alias, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.errors import UserError
from yolofleet.registry.champions import Reign, move_alias, rollback_target
from yolofleet.registry.comparison import judged_on
from yolofleet.registry.gates import Gate, champion_gate, class_gate, latency_gate, lineage_gate, proof_gate
from yolofleet.registry.model_tags import ModelTags
from yolofleet.registry.verify import Verification, verify
from yolofleet.registry.versions import RegistryError, Version, check_alias, list_versions
from yolofleet.specs.promotion import AgainstChampion, PromotionPolicy

if TYPE_CHECKING:
    import torch


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
