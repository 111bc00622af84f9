"""The content of one or several checked datasets: duplicates and leaks among them, histograms, suspicious labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.text import and_more
from yolofleet.data.check import CheckReport
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, decode_image
from yolofleet.data.duplicates import DuplicateGroup, find_duplicates
from yolofleet.data.findings import Findings, find_suspicious_labels
from yolofleet.data.histograms import Histograms, count_content
from yolofleet.data.image_formats import ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.sources import ImageStore
from yolofleet.storage import StorageError

MOST_GROUPS_IN_JSON = 10_000


@dataclass(frozen=True)
class CheckedSplit:
    """A checked dataset: one of those that must not share images."""

    name: str
    """The annotations, as the user named them."""
    report: CheckReport
    images: ImageStore

    def read(self, image: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8] | None:
        """Decode an image that can be used, the way up that its boxes want; None if it is no longer there."""
        try:
            data = self.images.get(self.report.keys[image])
            return decode_image(data, max_pixels=max_pixels, upright=self.report.records[image].way_up)
        except (ImageError, StorageError):
            return None


@dataclass(frozen=True)
class Duplicates:
    """A group of duplicates by dataset: (dataset, image) positions."""

    images: tuple[tuple[int, int], ...]
    is_exact: bool
    is_mirrored: bool

    @property
    def is_leak(self) -> bool:
        """Whether the images are of more than one dataset."""
        return len({split for split, _ in self.images}) > 1


@dataclass(frozen=True)
class Content:
    """What the checks of the content found."""

    splits: tuple[CheckedSplit, ...]
    duplicates: tuple[Duplicates, ...]
    """Leaks first."""
    histograms: tuple[Histograms, ...]
    """One for each dataset."""
    findings: Findings

    def record(self, split: int, image: int) -> ImageRecord:
        """Return the record of an image."""
        return self.splits[split].report.records[image]

    def name(self, split: int, image: int) -> str:
        """Return the name of an image; of several datasets, with that of its dataset."""
        file_name = self.record(split, image).file_name
        return f"{self.splits[split].name}: {file_name}" if len(self.splits) > 1 else file_name

    def as_document(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "duplicate_groups": len(self.duplicates),
            "duplicates": [
                {
                    "files": [self.name(*image) for image in group.images],
                    "exact": group.is_exact,
                    "mirrored": group.is_mirrored,
                    "leak": group.is_leak,
                }
                for group in self.duplicates[:MOST_GROUPS_IN_JSON]
            ],
            "findings": self.findings.as_document(
                lambda entry: self.name(entry.split, entry.image), [split.report.records for split in self.splits]
            ),
            "splits": [
                {
                    "name": split.name,
                    "images": split.report.num_listed,
                    "usable": split.report.num_usable,
                    "boxes": split.report.num_boxes,
                    "histograms": histograms.as_document(),
                }
                for split, histograms in zip(self.splits, self.histograms, strict=True)
            ],
        }


def check_content(splits: Sequence[CheckedSplit], problems: ProblemLog) -> Content:
    """Check what checked datasets hold; duplicates and leaks are counted as problems."""
    findings = Findings()
    for number, split in enumerate(splits):
        find_suspicious_labels(split.report.records, split.report.classes, number, findings)
    starts = np.cumsum([0, *(len(split.report.records) for split in splits)])
    groups = find_duplicates(np.concatenate([split.report.fingerprints for split in splits]))
    duplicates = sorted((_by_split(group, starts.tolist()) for group in groups), key=lambda group: not group.is_leak)
    content = Content(
        tuple(splits),
        tuple(duplicates),
        tuple(count_content(split.report.records, split.report.classes) for split in splits),
        findings,
    )
    for group in duplicates:
        kind = "image_leak" if group.is_leak else "image_duplicate" if group.is_exact else "image_near_duplicate"
        names = and_more([content.name(*image) for image in group.images], 3)
        problems.add(kind, f"{names}{' (mirrored)' if group.is_mirrored else ''}")
    first = splits[0]
    for split in splits[1:]:
        if split.report.classes != first.report.classes:
            known = (f"{s.name}: {and_more([c.name for c in s.report.classes], 6)}" for s in (first, split))
            problems.add("classes_differ", "; ".join(known))
    return content


def _by_split(group: DuplicateGroup, starts: list[int]) -> Duplicates:
    splits = np.searchsorted(starts, group.images, side="right") - 1
    images = tuple((int(split), image - starts[split]) for split, image in zip(splits, group.images, strict=True))
    return Duplicates(images, group.is_exact, group.is_mirrored)
