"""Building a dataset of shards: in parallel, restartable after a kill, byte-identical when run twice.

Every finished shard leaves a note under ``building/`` with its entry, its counts and its problems; a build that is run
again reads the notes of the same plan and builds the missing shards only. The manifest is written last, then the notes
are removed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.temporary import temporary_folder
from yolofleet.core.text import plural
from yolofleet.data.build_plan import BuildOptions, BuildPlan, PlannedImage, PlannedShard, in_split, plan_build
from yolofleet.data.check import CheckedImage, check_image
from yolofleet.data.image_formats import ImageError
from yolofleet.data.manifest import Manifest, ManifestError, ShardEntry
from yolofleet.data.problems import ProblemLog, tell_crowds
from yolofleet.data.records import ImageRecord
from yolofleet.data.shard_writer import ShardWriter, reencode, sample_key
from yolofleet.data.sources import ImageStore, SourceDataset, read_image_file
from yolofleet.storage import ObjectNotFoundError, Storage, StorageError

DEFAULT_MOST_SKIPPED = 0.5
NOTES_PREFIX = "building/"
Progress = Callable[[int], None]
"""Called with the number of images that were just processed, from any thread."""


class BuildError(UserError):
    """The dataset cannot be built as asked."""


@dataclass(frozen=True)
class _FinishedShard:
    """The result of one shard: its entry (None if no sample was left), its counts, its problems."""

    entry: ShardEntry | None
    num_empty: int
    num_crowds: int
    source_bytes: int
    class_counts: list[int]
    problem_counts: dict[str, int]
    problem_examples: dict[str, list[str]]

    def to_note(self, digest: str) -> bytes:
        return json.dumps({"plan": digest, "shard": asdict(self)}, indent=1).encode()

    @staticmethod
    def from_note(data: bytes, digest: str) -> _FinishedShard | None:
        """Read a note; None if it is of another plan."""
        try:
            document = json.loads(data)
            if document["plan"] != digest:
                return None
            fields = dict(document["shard"])
            entry = fields.pop("entry")
            return _FinishedShard(entry=None if entry is None else ShardEntry.parse(entry), **fields)
        except (ValueError, KeyError, TypeError):
            return None  # a damaged note costs one shard's work


@dataclass(frozen=True)
class BuildResult:
    """A finished build: its manifest, and how much of it was new."""

    manifest: Manifest
    num_shards_reused: int
    num_skipped: int
    source_bytes: int


def build_dataset(
    source: SourceDataset,
    images: ImageStore,
    out: Storage,
    options: BuildOptions,
    problems: ProblemLog,
    *,
    num_threads: int = 1,
    most_skipped: float = DEFAULT_MOST_SKIPPED,
    overwrite: bool = False,
    progress: Progress = lambda count: None,
) -> BuildResult:
    """Build the shards, the indexes and, last, the manifest.

    Args:
        source: Classes and records.
        images: The folder of images.
        out: Where the dataset is written.
        options: Shard sizes and the like.
        problems: Where problems are counted; it may hold those of reading the annotations.
        num_threads: Shards that are built at once (decoding releases the interpreter lock).
        most_skipped: The largest share of images that may be left out.
        overwrite: Replace another dataset in the same folder.
        progress: Called for every image that was processed.

    Raises:
        BuildError: The folder holds another dataset, too many images are unusable, or none is left.
        StorageError: Images cannot be read or shards cannot be written.
    """
    sizes = {entry.key: entry.size_bytes for entry in images.list()}
    if not sizes:
        raise BuildError(f"{images.url}: no files here; {problems.reasons() or 'name the folder of the images'}")
    num_lost = problems.num_boxes_lost()
    plan = plan_build(source.classes, source.records, sizes, options, problems)
    existing = _existing_manifest(out)
    if existing is not None and existing.source_digest == plan.digest:
        source_bytes = sum(image.size_bytes for shard in plan.shards for image in shard.images)
        return BuildResult(existing, len(existing.shards), plan.num_listed - existing.num_samples, source_bytes)
    if existing is not None and not overwrite:
        raise BuildError(
            f"{out.url}: holds another dataset already ({plural(existing.num_samples, 'image')}); "
            "choose another folder, or use --overwrite to replace it"
        )
    if existing is not None or out.exists(MANIFEST_NAME):
        out.delete(MANIFEST_NAME)
    finished, num_reused = _build_shards(plan, images, out, options, num_threads, progress)
    for shard in finished:
        problems.merge(shard.problem_counts, shard.problem_examples)
    tell_crowds(
        sum(shard.num_crowds for shard in finished), sum(sum(shard.class_counts) for shard in finished), problems
    )
    manifest = _make_manifest(plan, finished, problems)
    _refuse_too_few(manifest, plan, problems, most_skipped)
    _refuse_lost_boxes(manifest, source, options, num_lost, problems, most_skipped)
    _remove_foreign_shards(out, manifest)
    out.put(MANIFEST_NAME, manifest.to_bytes())
    for note in out.list(NOTES_PREFIX):
        out.delete(note.key)
    source_bytes = sum(shard.source_bytes for shard in finished)
    return BuildResult(manifest, num_reused, plan.num_listed - manifest.num_samples, source_bytes)


def _existing_manifest(out: Storage) -> Manifest | None:
    try:
        return Manifest.read(out) if out.exists(MANIFEST_NAME) else None
    except ManifestError:
        return None  # an unreadable manifest is no dataset, and may be overwritten


def _build_shards(
    plan: BuildPlan, images: ImageStore, out: Storage, options: BuildOptions, num_threads: int, progress: Progress
) -> tuple[list[_FinishedShard], int]:
    """Build the missing shards; the first failure stops the others and is raised."""
    stop = threading.Event()
    num_reused = 0
    lock = threading.Lock()

    def build(shard: PlannedShard) -> _FinishedShard:
        nonlocal num_reused
        note_key = f"{NOTES_PREFIX}{shard.name}.json"
        if (done := _read_note(out, note_key, plan.digest)) is not None:
            progress(len(shard.images))
            with lock:
                num_reused += 1
            return done
        try:
            done = _build_shard(shard, len(plan.classes), images, out, options, progress, stop)
            out.put(note_key, done.to_note(plan.digest))
        except BaseException:
            stop.set()
            raise
        return done

    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        try:
            return list(pool.map(build, plan.shards)), num_reused
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _read_note(out: Storage, note_key: str, digest: str) -> _FinishedShard | None:
    try:
        done = _FinishedShard.from_note(out.get(note_key), digest)
        if done is not None and done.entry is not None and out.size_bytes(done.entry.tar_key) != done.entry.bytes:
            return None
        return done
    except ObjectNotFoundError:
        return None


def _build_shard(
    shard: PlannedShard,
    num_classes: int,
    images: ImageStore,
    out: Storage,
    options: BuildOptions,
    progress: Progress,
    stop: threading.Event,
) -> _FinishedShard:
    problems = ProblemLog()
    class_counts = np.zeros(num_classes, dtype=np.int64)
    num_empty = num_crowds = num_samples = 0
    with temporary_folder() as folder, ShardWriter(folder / "shard") as writer:
        for image in shard.images:
            if stop.is_set():
                raise StorageError(f"{out.url}: the build was stopped")
            if (taken := _read_checked(image, images, options, problems)) is not None:
                data, extension, record = taken
                writer.add(sample_key(image.position, record.file_name), extension, data, record)
                targets = record.classes[~record.iscrowd]
                class_counts += np.bincount(targets, minlength=num_classes)
                num_crowds += int(record.iscrowd.sum())
                num_empty += len(targets) == 0
                num_samples += 1
            progress(1)
        entry = writer.finish(out, shard.name) if num_samples else None
    return _FinishedShard(
        entry,
        num_empty,
        num_crowds,
        sum(image.size_bytes for image in shard.images),
        class_counts.tolist(),
        problems.counts,
        problems.examples,
    )


def _read_checked(
    image: PlannedImage, images: ImageStore, options: BuildOptions, problems: ProblemLog
) -> tuple[bytes, str, ImageRecord] | None:
    """Read and check one image; returns its bytes, their extension and the record that fits them."""
    try:
        data = read_image_file(images, image.key, image.size_bytes, options.max_pixels)
    except ImageError as error:
        problems.add(error.reason, f"{image.record.file_name}: {error}")
        return None
    except ObjectNotFoundError:  # removed since the listing
        problems.add("image_file_missing", f"image {image.record.image_id}: {image.record.file_name!r}")
        return None
    checked: CheckedImage | None = check_image(image.record, data, problems, max_pixels=options.max_pixels)
    if checked is None:
        return None
    if options.reencode_quality is not None:
        return reencode(checked, data, options.reencode_quality, options.longest_side)
    return data, checked.extension, checked.record


def _make_manifest(plan: BuildPlan, finished: list[_FinishedShard], problems: ProblemLog) -> Manifest:
    entries = tuple(shard.entry for shard in finished if shard.entry is not None)
    class_counts = tuple(sum(shard.class_counts[index] for shard in finished) for index in range(len(plan.classes)))
    return Manifest(
        classes=plan.classes,
        class_counts=class_counts,
        num_samples=sum(entry.samples for entry in entries),
        num_empty=sum(shard.num_empty for shard in finished),
        num_boxes=sum(class_counts),
        num_crowds=sum(shard.num_crowds for shard in finished),
        shards=entries,
        source_digest=plan.digest,
        problems=problems.as_document(),
    )


def _refuse_too_few(manifest: Manifest, plan: BuildPlan, problems: ProblemLog, most_skipped: float) -> None:
    num_skipped = plan.num_listed - manifest.num_samples
    reasons = problems.reasons()
    if manifest.num_samples == 0:
        raise BuildError(f"no image is left to build a dataset from; {reasons or 'the source lists none'}")
    if num_skipped > most_skipped * plan.num_listed:
        raise BuildError(
            f"{num_skipped:,} of {plural(plan.num_listed, 'image is', 'images are')} unusable, more than the share of "
            f"{most_skipped:g} that may be skipped; {reasons}. Repair them, or allow more with --max-skipped"
        )


def _refuse_lost_boxes(
    manifest: Manifest,
    source: SourceDataset,
    options: BuildOptions,
    num_lost: int,
    problems: ProblemLog,
    most_skipped: float,
) -> None:
    """Refuse a dataset that has lost all of its boxes or too many: while its source was read, or with its images."""
    num_read = sum(len(record.boxes) for record in source.records)
    num_chosen = sum(len(record.boxes) for record in source.records if in_split(record.image_id, options.split))
    num_kept = manifest.num_boxes + manifest.num_crowds
    if not num_read + num_lost:
        return  # images without objects, such as those of a test set
    if not manifest.num_boxes and (num_chosen or not num_read):
        raise BuildError(f"none of the annotated boxes can be used; mainly {problems.main_loss()}")
    share_read = num_read / (num_read + num_lost)
    share_lost = 1 - share_read * (num_kept / num_chosen if num_chosen else 1.0)
    if share_lost > most_skipped:
        raise BuildError(
            f"{share_lost:.0%} of the annotated objects are lost, more than the share of {most_skipped:g} that may be "
            f"skipped; mainly {problems.main_loss()}. Repair them, or allow more with --max-skipped"
        )


def _remove_foreign_shards(out: Storage, manifest: Manifest) -> None:
    """Remove the shards of an earlier dataset."""
    wanted = {key for entry in manifest.shards for key in (entry.tar_key, entry.index_key)}
    for entry in out.list("shards/"):
        if entry.key not in wanted:
            out.delete(entry.key)
