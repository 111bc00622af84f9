"""Reading what `find_layout` found: each split as a source, all with the same classes, ready to be sharded.

A set that is not split is split here, by a hash of the name of each image: adding images moves none of the others, and
copies that Roboflow makes of one image (``NAME.rf.HASH``) stay together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.text import plural
from yolofleet.data.build import DEFAULT_MOST_SKIPPED, NOTES_PREFIX, BuildResult, Progress, build_dataset
from yolofleet.data.build_plan import BuildOptions, plan_build
from yolofleet.data.class_names import parse_class_names
from yolofleet.data.coco import parse_coco
from yolofleet.data.file_finder import find_files, name_parts, without_type
from yolofleet.data.file_tree import label_stems
from yolofleet.data.layout import Layout, Part
from yolofleet.data.layout_classes import tell_classes, with_equal_classes
from yolofleet.data.manifest import Manifest, ManifestError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import unpacked
from yolofleet.data.records import ImageRecord
from yolofleet.data.sources import SourceDataset, SplitFiles
from yolofleet.data.voc import read_voc_splits
from yolofleet.data.yolo import read_yolo_splits
from yolofleet.data.yolo_dataset import with_missing
from yolofleet.storage import ObjectInfo, ObjectNotFoundError, Storage

NUM_SAMPLES_OF_A_NAME = 3
"""Images of one name are copies (turned, say), unless there are more of each on average: then they are samples."""
_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{8,}$")


class FileView:
    """Some files of a folder, under the names that annotations use.

    Args:
        folder: The folder.
        keys: Keys in it by name.
        sizes: Bytes of its files by key.
    """

    def __init__(self, folder: Storage, keys: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        self.url = folder.url
        self._folder = folder
        self._keys = keys
        self._sizes = sizes

    def list(self) -> list[ObjectInfo]:
        """Return the files, sorted by name."""
        return [ObjectInfo(name, self._sizes[self._keys[name]]) for name in sorted(self._keys)]

    def get(self, key: str) -> bytes:
        """Return the bytes of a file."""
        if key not in self._keys:
            raise ObjectNotFoundError(f"{self.url}: no file {key!r}")
        return self._folder.get(self._keys[key])

    def keys_of(self, names: Sequence[str]) -> Sequence[str | None]:
        """Return the keys in the folder of the files that annotations name; None for those that are missing."""
        return [None if name is None else self._keys[name] for name in find_files(names, self._keys)]


@dataclass(frozen=True)
class SplitSource:
    """A split that can be sharded."""

    source: SourceDataset
    images: FileView
    problems: ProblemLog
    """What was found while the annotations were read."""

    @property
    def num_boxes(self) -> int:
        """Objects that are targets."""
        return sum(int((~record.iscrowd).sum()) for record in self.source.records)

    def image_keys(self) -> Sequence[str | None]:
        """Return the key in the folder of each record's image; None where it is missing."""
        return self.images.keys_of([record.file_name for record in self.source.records])


def read_layout(
    layout: Layout, folder: Storage, sizes: Mapping[str, int], problems: ProblemLog
) -> dict[str, SplitSource]:
    """Read the splits of a layout.

    Args:
        layout: What the folder holds.
        folder: The folder.
        sizes: Bytes of its files by key.
        problems: What was found while the folder was listed; the first split gets it.

    Raises:
        UserError: Annotations cannot be used at all.
    """
    names = None
    if layout.names_file is not None:
        names = parse_class_names(folder.get(layout.names_file), f"{folder.url}/{layout.names_file}")
    parts, logs = layout.splits.values(), [problems, *(ProblemLog() for _ in range(1, len(layout.splits)))]
    images = [FileView(folder, part.images, sizes) for part in parts]
    files = [
        SplitFiles(FileView(folder, part.labels, sizes), view, log)
        for part, view, log in zip(parts, images, logs, strict=True)
    ]
    match layout.form:
        case "COCO":
            sources = [_read_coco(part, folder, log) for part, log in zip(parts, logs, strict=True)]
        case "YOLO":
            sources = read_yolo_splits(files, names)
        case "VOC":
            sources = read_voc_splits(files, names)
    for part, log in zip(parts, logs, strict=True):
        _tell_repairs(part, log)
    sources = [with_missing(source, _inside(part.missing)) for source, part in zip(sources, parts, strict=True)]
    found = map(SplitSource, with_equal_classes(sources), images, logs)
    return dict(zip(layout.splits, found, strict=True))


def _tell_repairs(part: Part, problems: ProblemLog) -> None:
    """Count labels that do not lie where the names of their images say, and images that were left out."""
    for name, key in part.labels.items():
        if name not in (key, key.rpartition("/")[2]) and without_type(key) not in label_stems(name):
            problems.add("file_name_repaired", f"{without_type(name)}: its label is {key}")
    for image in part.left_out:
        problems.add("folder_without_labels", image)


def _inside(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines of lists as paths below a folder, each once."""
    names = ("/".join(part for part in name_parts(line) if not part.endswith(":")) for line in lines)
    return tuple(dict.fromkeys(names))


def _read_coco(part: Part, folder: Storage, problems: ProblemLog) -> SourceDataset:
    (key,) = part.labels.values()
    url = f"{folder.url}/{key}"
    return parse_coco(unpacked(folder.get(key), key, url), url, problems)


def assign_splits(splits: Mapping[str, SplitSource], share: float) -> tuple[dict[str, SplitSource], str | None]:
    """Return train, val and, where there is one, test; and a sentence on how images were split, or None.

    Args:
        splits: As read. ``trainval`` and ``all`` without the images of val and test are those for training.
        share: Share of the images for validation where none are set apart.

    Raises:
        UserError: There are not enough images with objects.
    """
    assigned, sentence = _assigned(splits, share)
    for split, found in assigned.items():
        tell_classes(split, found.source, assigned["train"].source, found.problems)
    return assigned, sentence


def _assigned(splits: Mapping[str, SplitSource], share: float) -> tuple[dict[str, SplitSource], str | None]:
    name = next(split for split in ("train", "trainval", "all", "val", "test") if split in splits)
    whole, without, equal = splits[name], "", ""
    apart = {split: splits[split] for split in ("val", "test") if split in splits and split != name}
    if name in ("trainval", "all"):
        for split, other in list(apart.items()):
            if (rest := _without_images_of(whole, other)).source.records:
                whole, without = rest, f"{without} and {split}" if without else f" without the images of {split}"
            else:
                del apart[split]
                equal += f"; {split} holds all of them, and is left out"
    if "val" in apart:
        parts = {"train": whole, **apart}
        for split in ("train", "val"):
            if not parts[split].num_boxes:
                raise UserError(f"{split}: {_why_no_box(parts[split])}")
        given = "all images" if name == "all" else name
        return parts, None if name == "train" else f"for training: {given}{without}{equal}"
    if not whole.num_boxes:
        raise UserError(_why_no_box(whole))
    chosen = validation_names(whole.source.records, share)
    train = _with_records(whole, [record for record in whole.source.records if record.file_name not in chosen])
    val = _with_records(whole, [record for record in whole.source.records if record.file_name in chosen])
    given = "one set" if name == "all" else f"{name} alone"
    sentence = f"{given}{without}: {share:.0%} of its images, by a hash of their names, are for validation{equal}"
    return {"train": train, "val": replace(val, problems=ProblemLog()), **apart}, sentence


def _with_records(split: SplitSource, records: Sequence[ImageRecord]) -> SplitSource:
    return replace(split, source=replace(split.source, records=tuple(records)))


def _without_images_of(split: SplitSource, other: SplitSource) -> SplitSource:
    taken = {key for key in other.image_keys() if key is not None}
    pairs = zip(split.source.records, split.image_keys(), strict=True)
    return _with_records(split, [record for record, key in pairs if key not in taken])


def _why_no_box(split: SplitSource) -> str:
    records = split.source.records
    where = f"{split.images.url}: no box in {plural(len(records), 'image')}"
    if num_crowds := sum(len(record.iscrowd) for record in records):
        crowds = plural(num_crowds, "object is a crowd, which is no target", "objects are crowds, which are no targets")
        return f"{where}: {crowds}; set iscrowd (in VOC: difficult) to 0"
    return f"{where}; {split.problems.main_loss() or 'not one object is annotated'}"


def validation_names(records: tuple[ImageRecord, ...], share: float) -> set[str]:
    """Return the file names of the images for validation, some with objects on either side.

    Raises:
        UserError: Fewer than two images hold objects.
    """
    by_folder = _are_named_by_folder([record.file_name for record in records if not record.iscrowd.all()])
    shares = {record.file_name: name_share(record.file_name, by_folder) for record in records}
    labelled = sorted((shares[record.file_name], record.file_name) for record in records if not record.iscrowd.all())
    if len({value for value, _ in labelled}) < 2:
        raise UserError(
            f"{plural(len(labelled), 'image holds', 'images hold')} objects, of {len(records):,}; at least two are "
            "needed, one to train on and one for validation: annotate more"
        )
    # The bound of few images is moved, so that neither side is without objects.
    bound = min(max(share, np.nextafter(labelled[0][0], 1)), labelled[-1][0])
    return {name for name, value in shares.items() if value < bound}


def name_share(file_name: str, is_named_by_folder: bool = False) -> float:
    """Return the hash of an image's name as a number in [0, 1); that of its copies is the same.

    Args:
        file_name: The name; its folders do not count, so copies in another folder stay with it.
        is_named_by_folder: The folders count: every sample is a folder of its own, with images of equal names.
    """
    path = _without_copy(file_name)
    name = path if is_named_by_folder else path.rpartition("/")[2]
    return int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:8], "big") / 2**64


def _are_named_by_folder(file_names: Sequence[str]) -> bool:
    """Return whether images have so few names that their folders tell them apart, as s1/image.jpg and s2/image.jpg."""
    paths = {_without_copy(name) for name in file_names}
    num_names = len({path.rpartition("/")[2] for path in paths})
    return num_names < 2 or NUM_SAMPLES_OF_A_NAME * num_names < len(paths)


def _without_copy(file_name: str) -> str:
    return _COPY.sub("", without_type(file_name).replace("\\", "/"))


def shard_split(
    split: SplitSource,
    out: Storage,
    *,
    num_threads: int = 1,
    most_skipped: float = DEFAULT_MOST_SKIPPED,
    progress: Progress = lambda count: None,
) -> BuildResult:
    """Build the shards of a split, or what is missing of them; another dataset is never replaced.

    Raises:
        UserError: The folder holds something else, or too many images are unusable.
        StorageError: Images cannot be read or shards cannot be written.
    """
    sizes = {entry.key: entry.size_bytes for entry in split.images.list()}
    plan = plan_build(split.source.classes, split.source.records, sizes, BuildOptions(), ProblemLog())
    if (other := _other_content(out, plan.digest)) is not None:
        raise UserError(f"{out.url}: {other}, and nothing is overwritten; choose another --name or --out, or remove it")
    problems = ProblemLog()
    problems.merge(split.problems.counts, split.problems.examples)
    return build_dataset(
        split.source,
        split.images,
        out,
        BuildOptions(),
        problems,
        num_threads=num_threads,
        most_skipped=most_skipped,
        progress=progress,
    )


def _other_content(out: Storage, digest: str) -> str | None:
    """Return what a folder holds beside this dataset or a part of it."""
    if out.exists(MANIFEST_NAME):
        try:
            manifest = Manifest.read(out)
        except ManifestError:
            return "holds a manifest that cannot be read"
        images = plural(manifest.num_samples, "image")
        return None if manifest.source_digest == digest else f"holds another dataset ({images})"
    for entry in out.list():
        if not entry.key.startswith((NOTES_PREFIX, "shards/")):
            return f"holds {entry.key}"
        if entry.key.startswith(NOTES_PREFIX):
            try:
                plan = json.loads(out.get(entry.key))["plan"]
            except (ValueError, KeyError, TypeError):
                continue  # a damaged note costs one shard's work
            if plan != digest:
                return "holds a part of another dataset"
    return None
