"""Problems of a dataset, counted by kind, with examples.

Every kind of problem is listed here once with its outcome: a ``note`` changes nothing, a ``repair`` corrects the item,
a ``drop`` leaves the box or the image out. A file that cannot be used at all raises ``UserError`` instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from yolofleet.core.text import visible

Outcome = Literal["note", "repair", "drop"]
NUM_EXAMPLES_KEPT = 5
LONGEST_EXAMPLE = 300


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem: its outcome for the item, and a sentence on it."""

    outcome: Outcome
    meaning: str


PROBLEM_KINDS: dict[str, ProblemKind] = {
    # boxes
    "box_missing": ProblemKind("drop", "an annotation has no bbox"),
    "box_malformed": ProblemKind("drop", "a bbox is not four numbers"),
    "box_not_finite": ProblemKind("drop", "a bbox holds NaN or infinity"),
    "box_negative": ProblemKind("drop", "a bbox has a negative width or height"),
    "box_zero_area": ProblemKind("drop", "a bbox has no area"),
    "box_tiny": ProblemKind("drop", "a bbox is thinner than a hundredth of a pixel"),
    "box_outside": ProblemKind("drop", "a bbox is wholly outside its image"),
    "box_clipped": ProblemKind("repair", "a bbox reached out of its image and was clipped to it"),
    "boxes_look_like_corners": ProblemKind("note", "boxes seem to be x1,y1,x2,y2 instead of x,y,width,height"),
    "area_missing": ProblemKind("repair", "an annotation has no usable area; width x height is taken"),
    "iscrowd_malformed": ProblemKind("repair", "iscrowd is neither 0 nor 1; taken as 0"),
    "segmentation_malformed": ProblemKind("repair", "a polygon or RLE makes no sense and is left out; its box is kept"),
    "category_missing": ProblemKind("drop", "an annotation has no category_id"),
    "category_malformed": ProblemKind("drop", "a category_id is not a whole number"),
    "category_unknown": ProblemKind("drop", "a category_id is not in the list of categories"),
    "category_duplicate_name": ProblemKind("note", "two categories have the same name; they stay two classes"),
    "annotation_malformed": ProblemKind("drop", "an annotation is not an object with an image_id"),
    "annotation_without_image": ProblemKind("drop", "an annotation belongs to an image that is not listed"),
    "annotation_duplicate_id": ProblemKind("repair", "two annotations have the same id; both are kept and renumbered"),
    "annotation_duplicate_box": ProblemKind("note", "an image has one box of one class twice; both are kept"),
    # records of images
    "image_malformed": ProblemKind("drop", "an image record is not an object with id and file_name"),
    "image_duplicate_file": ProblemKind("note", "one file is listed under two image ids (a leak between splits?)"),
    "image_id_renumbered": ProblemKind("repair", "image ids are not whole numbers; they become 1, 2, ..."),
    "image_size_missing": ProblemKind("repair", "an image record has no usable width and height; the file's are taken"),
    "image_size_wrong": ProblemKind("repair", "width and height differ from the file's; the file's are taken"),
    "image_turned": ProblemKind("repair", "EXIF turns an image and its annotations fit that: turned"),
    "image_exif_ignored": ProblemKind("note", "EXIF turns an image, its annotations do not: left as stored"),
    "image_path_outside": ProblemKind("drop", "a file_name leaves the folder of images"),
    "image_file_missing": ProblemKind("drop", "a listed file does not exist"),
    # files and folders
    "link_outside": ProblemKind("drop", "a link leads out of its folder; --follow-links reads what it leads to"),
    "file_name_unusable": ProblemKind("drop", "the name of a file is not UTF-8 or holds a backslash"),
    "file_unreadable": ProblemKind("drop", "a file or a sub-folder cannot be read, or is a link to nothing"),
    "file_irregular": ProblemKind("drop", "a pipe or a device, which is never opened"),
    # files of images
    "image_empty": ProblemKind("drop", "an image file has 0 bytes"),
    "image_unknown": ProblemKind("drop", "a file is not an image of a known format"),
    "image_damaged": ProblemKind("drop", "an image file is damaged or cut short"),
    "image_too_large": ProblemKind("drop", "an image has more pixels, or its file more bytes, than the limit"),
    "image_extension_wrong": ProblemKind("note", "a file's extension does not fit its content; the content counts"),
    "image_animated": ProblemKind("note", "an animation: its first frame is used"),
    "image_extreme_shape": ProblemKind("note", "an image is more than 50 times longer than wide"),
    # labels in text form
    "label_line_malformed": ProblemKind("drop", "a label line is not a class and numbers in 0..1"),
    "label_file_too_large": ProblemKind("drop", "a label file has more bytes than labels of an image can have"),
    "label_file_missing": ProblemKind("note", "an image has no label file; it is taken as one without objects"),
    # samples in shards
    "sample_without_json": ProblemKind("drop", "a sample in a shard has no annotation"),
    "sample_without_image": ProblemKind("drop", "a sample in a shard has no image"),
    "sample_duplicate_member": ProblemKind("drop", "a sample in a shard holds the same part twice"),
    "sample_json_damaged": ProblemKind("drop", "a sample's annotation is no JSON, or holds what cannot be"),
    "sample_lost": ProblemKind("drop", "a sample could not be read because its shard is cut or damaged"),
    "member_ignored": ProblemKind("note", "a shard holds a member that is no part of a sample"),
    "shard_damaged": ProblemKind("drop", "a shard is cut, damaged or no tar file"),
    "shard_empty": ProblemKind("drop", "a shard holds no sample"),
}


@dataclass
class ProblemLog:
    """Counts problems by kind and keeps the first few of each as examples; safe among threads."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, kind: str, example: str) -> None:
        """Count one problem. ``example`` says where: the file, the ids, the value seen."""
        if kind not in PROBLEM_KINDS:
            raise KeyError(f"unknown kind of problem: {kind}")
        with self._lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            shown = self.examples.setdefault(kind, [])
            if len(shown) < NUM_EXAMPLES_KEPT:
                shown.append(visible(example, LONGEST_EXAMPLE))

    def merge(self, counts: dict[str, int], examples: dict[str, list[str]]) -> None:
        """Add the counts and examples of another log."""
        with self._lock:
            for kind, count in counts.items():
                self.counts[kind] = self.counts.get(kind, 0) + count
                shown = self.examples.setdefault(kind, [])
                shown.extend(examples.get(kind, [])[: NUM_EXAMPLES_KEPT - len(shown)])

    def num(self, outcomes: Iterable[Outcome] = ("note", "repair", "drop")) -> int:
        """Return the number of problems with one of these outcomes."""
        wanted = set(outcomes)
        return sum(count for kind, count in self.counts.items() if PROBLEM_KINDS[kind].outcome in wanted)

    def reasons(self) -> str:
        """Return what was left out, for the message of an error: each kind with its count and an example."""
        return ", ".join(
            f"{kind}: {count} (such as {self.examples[kind][0]})"
            for kind, count in sorted(self.counts.items())
            if PROBLEM_KINDS[kind].outcome == "drop"
        )

    def as_document(self) -> dict[str, Any]:
        """Return the log as plain JSON values, sorted by kind."""
        return {
            kind: {
                "count": self.counts[kind],
                "outcome": PROBLEM_KINDS[kind].outcome,
                "meaning": PROBLEM_KINDS[kind].meaning,
                "examples": self.examples[kind],
            }
            for kind in sorted(self.counts)
        }
