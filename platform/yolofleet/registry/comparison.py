"""Two versions on the same images: their figures, how sure the differences are, and where they differ most.

One page that shows how two versions differ: figures, classes, and the images where they differ most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.registry.evaluation_record import Judged, JudgingSettings, judge, read_detections
from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.proof import DETECTIONS_NAME, PROOF_NAME, file_sha256, read_proof
from yolofleet.registry.version_files import version_files
from yolofleet.registry.versions import Version

if TYPE_CHECKING:
    import torch

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import Differences
import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from yolofleet.evaluation.image_matches import Disagreement, disagreements
from yolofleet.evaluation.report import STYLE
from yolofleet.evaluation.samples import SampleImage, draw_sample

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import Difference


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
    """Return how a version is judged: its images as it has them, all else as said."""
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


NUM_IMAGES = 12
SIDE_PIXELS = 420
MORE_STYLE = """
.up{color:#2a9d5c}.down{color:#d6453d}.images{grid-template-columns:1fr}
.tail{display:inline-block;width:120px;height:12px;position:relative;vertical-align:middle}
.tail i{position:absolute;top:5px;height:3px;background:var(--bar)}
.tail b{position:absolute;top:0;left:50%;width:1px;height:12px;background:var(--soft)}
"""


@dataclass(frozen=True)
class DifferingImage:
    """An image on which two versions differ.

    Attributes:
        disagreement: The mistakes of both.
        image: Ground truth, the first version's boxes, the second version's boxes.
    """

    disagreement: Disagreement
    image: SampleImage


def differing_images(comparison: Comparison, *, count: int = NUM_IMAGES) -> list[DifferingImage]:
    """Draw the images on which two versions differ most."""
    first, second = (judged.detections for judged in comparison.found)
    chosen = disagreements(comparison.dataset.annotations(), first, second, count=count)
    numbers = _numbers(comparison.dataset, {entry.image_id for entry in chosen})
    images = []
    for entry in chosen:
        image = draw_sample(comparison.dataset, numbers[entry.image_id], [first, second], side=SIDE_PIXELS)
        if image is not None:
            images.append(DifferingImage(entry, image))
    return images


def render_comparison(comparison: Comparison, images: Sequence[DifferingImage]) -> str:
    """Render the page; it needs no other file and no network."""
    differences = comparison.differences
    first, second = escape(comparison.first.uri), escape(comparison.second.uri)
    title = f"{second} against {first}"
    share = f"{differences.confidence:.0%}"
    return "".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width,initial-scale=1'>",
            f"<title>{title}</title><style>{STYLE}{MORE_STYLE}</style></head><body><h1>{title}</h1>",
            f"<p class='soft'>{differences.num_images} images of {escape(comparison.dataset.storage.url)}, the same "
            f"for both. Intervals hold {share} of {differences.num_replicates} paired bootstrap replicates over "
            "images; a difference is coloured where its interval leaves out zero.</p>",
            "<h2>Figures</h2>",
            _table("figure", differences.figures, comparison),
            "<h2>AP of the classes</h2>",
            _table("class", differences.per_class, comparison),
            "<h2>Where they differ most</h2>",
            f"<p class='soft'>Left the ground truth, then {first}, then {second}; boxes from a score of 0.25.</p>"
            if images
            else "<p class='soft'>They make equally many mistakes in every image.</p>",
            f"<div class='images'>{''.join(_figure(entry) for entry in images)}</div></body></html>\n",
        ]
    )


def _table(heading: str, rows: Sequence[Difference], comparison: Comparison) -> str:
    widest = max((abs(end) for row in rows for end in (row.low, row.high) if end is not None), default=0.0) or 1.0
    names = [f"version {version.number}" for version in (comparison.first, comparison.second)]
    if comparison.first.name != comparison.second.name:
        names = [escape(version.uri.removeprefix("models:/")) for version in (comparison.first, comparison.second)]
    head = "".join(f"<th>{name}</th>" for name in (heading, *names, "difference", "interval", ""))
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(_row(row, widest) for row in rows)}</table></div>"


def _row(row: Difference, widest: float) -> str:
    if row.first is None or row.second is None or row.difference is None or row.low is None or row.high is None:
        return f"<tr><td>{escape(row.name)}</td><td>-</td><td>-</td><td>-</td><td>nothing to measure</td><td></td></tr>"
    tone = "up" if row.low > 0 else "down" if row.high < 0 else ""
    left, right = (60 + 58 * end / widest for end in (row.low, row.high))
    bar = f"<span class='tail'><b></b><i style='left:{left:.0f}px;width:{max(2, right - left):.0f}px'></i></span>"
    return (
        f"<tr><td>{escape(row.name)}</td><td>{row.first:.4f}</td><td>{row.second:.4f}</td>"
        f"<td class='{tone}'>{row.difference:+.4f}</td><td>{row.low:+.4f} to {row.high:+.4f}</td><td>{bar}</td></tr>"
    )


def _figure(entry: DifferingImage) -> str:
    mistakes = entry.disagreement
    return (
        f"<figure><img src='data:image/jpeg;base64,{base64.b64encode(entry.image.jpeg).decode()}' "
        f"width='{entry.image.width}' height='{entry.image.height}' loading='lazy' "
        f"alt='{escape(entry.image.name)}: ground truth and the boxes of both versions'>"
        f"<figcaption>{escape(entry.image.name)}: the first misses {mistakes.first_missed} and has "
        f"{mistakes.first_false} wrong, the second misses {mistakes.second_missed} and has {mistakes.second_false} "
        "wrong</figcaption></figure>"
    )


def _numbers(dataset: ShardDataset, image_ids: set[int]) -> dict[int, int]:
    """Return the number of each image's sample."""
    return {image_id: number for number, image_id in _image_ids(dataset) if image_id in image_ids}


def _image_ids(dataset: ShardDataset) -> Iterator[tuple[int, int]]:
    from yolofleet.data.dataset import SampleError
    from yolofleet.data.records import RecordError

    for number in range(len(dataset)):
        try:
            yield number, dataset.read(number).record().image_id
        except (SampleError, RecordError):
            continue  # it has no ground truth, so no disagreement speaks of it
