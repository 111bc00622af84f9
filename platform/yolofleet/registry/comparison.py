"""Two versions on the same images: figures, classes, how sure the differences are, and the images that differ most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.evaluation.image_matches import Disagreement, disagreements
from yolofleet.evaluation.samples import SampleImage, draw_sample
from yolofleet.registry.evaluation_record import Evaluation, EvaluationSettings, evaluate_detector, read_detections
from yolofleet.registry.package import DETECTOR_FOLDER, EVALUATION_FOLDER
from yolofleet.registry.proof import DETECTIONS_NAME, PROOF_NAME, file_sha256, read_proof
from yolofleet.registry.version_files import version_part
from yolofleet.registry.versions import RegistryError, Version
from yolofleet.reports.page import Cell, Markup, Section, Table, figure, grid, number_cell, render_page, table, text

if TYPE_CHECKING:
    import torch

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import Difference, Differences

NUM_IMAGES = 12
SIDE_PIXELS = 420


@dataclass(frozen=True)
class VersionComparison:
    """Two versions, evaluated on the same dataset."""

    first: Version
    second: Version
    dataset: ShardDataset
    evaluations: tuple[Evaluation, Evaluation]
    differences: Differences
    """Second less first, with confidence intervals."""

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
    on_images: Callable[[int], None] | None = None,
) -> VersionComparison:
    """Compare two versions on one dataset.

    The detections of a version are read from its record where that is whole; else it is evaluated now.

    Args:
        tracking_uri: The MLflow server or database.
        first: The first version.
        second: The second one.
        device: Where to compute.
        data: The dataset; by default the one that the second version was evaluated on.
        num_replicates: Of the bootstrap.
        confidence: Share of the replicates inside an interval.
        on_images: Called with a number of images each time that some were evaluated.

    Raises:
        UserError: There is no dataset to compare on, or a version cannot be evaluated on it.
    """
    from yolofleet.data.verification import open_verified
    from yolofleet.evaluation.bootstrap import paired_bootstrap

    dataset = open_verified(data if data is not None else _recorded_data(first, second))
    settings = _common_settings(first, second)
    evaluations = (
        evaluate_version(tracking_uri, first, dataset, device, on_images, thresholds_of=settings),
        evaluate_version(tracking_uri, second, dataset, device, on_images, thresholds_of=settings),
    )
    differences = paired_bootstrap(
        dataset.annotations(),
        evaluations[0].detections,
        evaluations[1].detections,
        num_replicates=num_replicates,
        confidence=confidence,
    )
    return VersionComparison(first, second, dataset, evaluations, differences)


def evaluate_version(
    tracking_uri: str,
    version: Version,
    dataset: ShardDataset,
    device: torch.device | str,
    on_images: Callable[[int], None] | None = None,
    *,
    thresholds_of: EvaluationSettings | None = None,
) -> Evaluation:
    """Return the evaluation of a version on a dataset: its record, if that is whole and was made so, else a new one.

    Args:
        tracking_uri: The MLflow server or database.
        version: The version.
        dataset: The validation set.
        device: Where to compute.
        on_images: Called with a number of images each time that some were evaluated.
        thresholds_of: Settings of the version that this one is compared with, for thresholds, shape and precision; by
            default the published thresholds and squares. The image size is always the version's own.

    Raises:
        UserError: The version cannot be evaluated on this dataset.
    """
    from yolofleet.evaluation.detector import Detector

    def settings(own: EvaluationSettings) -> EvaluationSettings:
        thresholds = thresholds_of or EvaluationSettings(image_size=own.image_size)
        return thresholds.model_copy(update={"image_size": own.image_size, "batch_size": own.batch_size})

    recorded = _recorded_evaluation(tracking_uri, version)
    if recorded is not None and recorded.record.manifest_sha256 == dataset.manifest.digest:
        own = recorded.record.settings
        if own == settings(own):
            return recorded
    with version_part(tracking_uri, version, DETECTOR_FOLDER) as folder:
        detector = Detector.load(folder / DETECTOR_FOLDER, device)
        own = EvaluationSettings(image_size=detector.card.image_size)
        return evaluate_detector(detector, dataset, settings(own), on_images)


def _recorded_evaluation(tracking_uri: str, version: Version) -> Evaluation | None:
    """Return the evaluation in a version's files; None where it has none, or a digest does not fit."""
    try:
        with version_part(tracking_uri, version, EVALUATION_FOLDER) as folder:
            proof_file, detections_file = folder / PROOF_NAME, folder / DETECTIONS_NAME
            is_whole = proof_file.is_file() and file_sha256(proof_file) == version.proof_sha256
            if not is_whole or not detections_file.is_file():
                return None
            proof = read_proof(folder)
            if proof.evaluation is None or proof.files.get(DETECTIONS_NAME) != file_sha256(detections_file):
                return None
            return Evaluation(proof.evaluation, read_detections(detections_file))
    except RegistryError:  # it holds none, or one that was changed
        return None


def _common_settings(first: Version, second: Version) -> EvaluationSettings | None:
    """Return the settings to compare by: the published protocol if both versions were evaluated by it, else squares."""
    protocols, precisions = (
        {version.facts.get(f"evaluation.{key}") for version in (first, second)} for key in ("protocol", "precision")
    )
    if protocols != {"published"} or len(precisions) > 1:
        return None
    settings = {"image_size": 1, "rectangular": True, "precision": precisions.pop()}
    return EvaluationSettings.parse(settings, source=f"tags of {first.uri}")


def _recorded_data(first: Version, second: Version) -> str:
    for version in (second, first):
        if (url := version.facts.get("data_url.val")) is not None:
            return url
    raise UserError(
        f"neither {first.uri} nor {second.uri} was evaluated when it was registered: name the data to compare on with "
        "--data"
    )


def differing_images(comparison: VersionComparison) -> list[tuple[Disagreement, SampleImage]]:
    """Draw the images on which two versions differ most: ground truth, boxes of the first, boxes of the second."""
    first, second = (evaluation.detections for evaluation in comparison.evaluations)
    chosen = disagreements(comparison.dataset.annotations(), first, second, count=NUM_IMAGES)
    numbers = _sample_numbers(comparison.dataset)
    images = []
    for entry in chosen:
        image = draw_sample(comparison.dataset, numbers[entry.image_id], [first, second], side=SIDE_PIXELS)
        if image is not None:
            images.append((entry, image))
    return images


def render_comparison(comparison: VersionComparison, images: Sequence[tuple[Disagreement, SampleImage]]) -> str:
    """Return the page; it needs no other file and no network."""
    differences = comparison.differences
    first, second = comparison.first.uri, comparison.second.uri
    note = (
        f"{plural(differences.num_images, 'image')} of {comparison.dataset.storage.url}, the same for both. Intervals "
        f"hold {differences.confidence:.0%} of {plural(differences.num_replicates, 'paired bootstrap replicate')} over "
        f"images; a difference has an arrow if its interval does not contain zero."
    )
    seen = f"From left to right: ground truth, {first}, {second}; boxes with a score of at least 0.25."
    sections = [
        Section(title="Figures", note=note, body=_table("figure", differences.figures, comparison)),
        Section(title="AP of the classes", body=_table("class", differences.per_class, comparison)),
        Section(
            title="Where they differ most",
            note=seen if images else "",
            body=grid((_figure(*entry) for entry in images), "images")
            or text("Both have the same number of mistakes in every image."),
        ),
    ]
    return render_page(f"{second} against {first}", sections, summary=_sentence(comparison))


def _sentence(comparison: VersionComparison) -> str:
    """Return whether the second version is better, and how sure that is."""
    second, row = comparison.second.uri, next(iter(comparison.differences.figures), None)
    if row is None or row.difference is None or row.low is None or row.high is None:
        return "There was nothing to measure."
    by = f"{row.name} {row.first:.4f} to {row.second:.4f}, interval of the difference {row.low:+.4f} to {row.high:+.4f}"
    if row.low > 0:
        return f"{second} is better: {by}."
    return f"{second} is worse: {by}." if row.high < 0 else f"{second} cannot be distinguished from the other by {by}."


def _table(heading: str, rows: Sequence[Difference], comparison: VersionComparison) -> Markup:
    widest = max((abs(end) for row in rows for end in (row.low, row.high) if end is not None), default=0.0) or 1.0
    names = [f"version {version.number}" for version in (comparison.first, comparison.second)]
    if comparison.first.name != comparison.second.name:
        names = [version.uri.removeprefix("models:/") for version in (comparison.first, comparison.second)]
    head = (heading, *names, "difference", "interval", "drawn")
    return table(Table(name=heading, head=head, rows=[_row(row, widest) for row in rows]))


def _row(row: Difference, widest: float) -> list[Cell | str]:
    if row.first is None or row.second is None or row.difference is None or row.low is None or row.high is None:
        return [row.name, *(number_cell(None) for _ in range(3)), "nothing to measure", ""]
    interval = f"{row.low:+.4f} to {row.high:+.4f}"
    tone = "good" if row.low > 0 else "bad" if row.high < 0 else ""
    return [
        row.name,
        number_cell(row.first, 4),
        number_cell(row.second, 4),
        Cell(text=f"{row.difference:+.4f}", sort=row.difference, tone=tone),
        interval,
        Cell(text=interval, sort=row.low, span=(row.low / widest, row.high / widest)),
    ]


def _figure(mistakes: Disagreement, image: SampleImage) -> Markup:
    said = (
        f"{image.name}: the first misses {mistakes.first_missed} and has {mistakes.first_false} wrong, "
        f"the second misses {mistakes.second_missed} and has {mistakes.second_false} wrong"
    )
    alt = f"{image.name}: ground truth and the boxes of both versions"
    return figure(image.jpeg, (image.width, image.height), alt, said)


def _sample_numbers(dataset: ShardDataset) -> dict[int, int]:
    """Return the number of the sample of each image id; a sample that cannot be read has no ground truth."""
    from yolofleet.data.records import SampleError

    numbers: dict[int, int] = {}
    for number in range(len(dataset)):
        with suppress(SampleError):
            numbers[dataset.read_record(number)[1].image_id] = number
    return numbers
