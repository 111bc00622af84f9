"""Two versions on the same images: their figures, how sure the differences are, and where they differ most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.errors import UserError
from yolofleet.registry.judgement import Judged, JudgingSettings, judge, read_detections
from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.proof import DETECTIONS_NAME, PROOF_NAME, file_sha256, read_proof
from yolofleet.registry.version_files import version_files
from yolofleet.registry.versions import Version

if TYPE_CHECKING:
    import torch

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import Differences


@dataclass(frozen=True)
class Comparison:
    """Two versions side by side.

    Attributes:
        first: The first version.
        second: The second one.
        dataset: What both were judged on.
        found: What each of them found there.
        differences: Second less first, with confidence intervals.
    """

    first: Version
    second: Version
    dataset: ShardDataset
    found: tuple[Judged, Judged]
    differences: Differences

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "first": self.first.uri,
            "second": self.second.uri,
            "data": self.dataset.storage.url,
            "manifest_sha256": self.dataset.manifest.digest,
            **asdict(self.differences),
        }


def compare(
    tracking_uri: str,
    first: Version,
    second: Version,
    device: torch.device | str = "cpu",
    *,
    data: str | None = None,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two versions on one dataset.

    What a version found there is taken from its record where that holds; else it is run.

    Args:
        tracking_uri: The MLflow server or database.
        first: The first version.
        second: The second one.
        device: Where to compute.
        data: The dataset; by default the one that the second version was judged on.
        num_replicates: Of the bootstrap.
        confidence: Share of the replicates inside an interval.
        seed: Of the bootstrap's draws.
        on_images: Told how many images were judged, each time some are.

    Raises:
        UserError: There is no dataset to compare on, or a version cannot be judged on it.
    """
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import paired_bootstrap

    dataset = ShardDataset(data if data is not None else _recorded_data(first, second))
    found = tuple(judged_on(tracking_uri, version, dataset, device, on_images) for version in (first, second))
    differences = paired_bootstrap(
        dataset.annotations(),
        found[0].detections,
        found[1].detections,
        num_replicates=num_replicates,
        confidence=confidence,
        seed=seed,
    )
    return Comparison(first, second, dataset, (found[0], found[1]), differences)


def judged_on(
    tracking_uri: str,
    version: Version,
    dataset: ShardDataset,
    device: torch.device | str,
    on_images: Callable[[int], None] | None = None,
    *,
    like: JudgingSettings | None = None,
) -> Judged:
    """Return what a version is worth on a dataset: by its record, if that is whole and made so, else judged now.

    Args:
        tracking_uri: The MLflow server or database.
        version: The version.
        dataset: The validation set.
        device: Where to compute.
        on_images: Told how many images were judged, each time some are.
        like: Whose thresholds to use, those of another version that this one is compared with; its own input size and
            the published evaluation's thresholds by default.

    Raises:
        UserError: The version cannot be judged on this dataset.
    """
    from yolofleet.evaluation.detector import Detector

    with version_files(tracking_uri, version) as folder:
        if version.proof_sha256 is not None and (folder / PROOF_NAME).is_file():
            proof = read_proof(folder)
            digest = proof.files.get(DETECTIONS_NAME)
            whole = (
                file_sha256(folder / PROOF_NAME) == version.proof_sha256
                and digest is not None
                and (folder / DETECTIONS_NAME).is_file()
                and file_sha256(folder / DETECTIONS_NAME) == digest
            )
            if whole and proof.judgement is not None and proof.judgement.manifest_sha256 == dataset.manifest.digest:
                own = proof.judgement.settings
                if own == _settings(own, like):
                    return Judged(proof.judgement, read_detections(folder / DETECTIONS_NAME))
        detector = Detector.load(folder / DETECTOR_FOLDER, device)
        own = JudgingSettings(image_size=detector.card.image_size)
        return judge(detector, dataset, _settings(own, like), on_images)


def _settings(own: JudgingSettings, like: JudgingSettings | None) -> JudgingSettings:
    """Return how a version is judged: its pictures as it has them, all else as said."""
    like = like or JudgingSettings(image_size=own.image_size)
    return like.model_copy(update={"image_size": own.image_size, "batch_size": own.batch_size})


def _recorded_data(first: Version, second: Version) -> str:
    for version in (second, first):
        if (url := version.facts.get("data_url.val")) is not None:
            return url
    raise UserError(
        f"neither {first.uri} nor {second.uri} was judged when it was registered: name the data to compare on with "
        "--data"
    )
