"""Problems of a dataset, counted by kind, with examples.

Every kind of problem is listed here once with its outcome: a ``note`` changes nothing, a ``repair`` corrects the item,
a ``drop`` leaves the box or the image out, and an ``info`` is no problem at all, but what was done unasked. A file that
cannot be used at all raises ``UserError`` instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from yolofleet.core.text import plural, visible

Outcome = Literal["info", "note", "repair", "drop"]
NUM_EXAMPLES_KEPT = 5
LONGEST_EXAMPLE = 300


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem: its outcome for the item, and a sentence on it."""

    outcome: Outcome
    meaning: str


PROBLEM_KINDS: dict[str, ProblemKind] = {
    # boxes
    "no_box_left": ProblemKind("drop", "objects are annotated, but none of their boxes can be used"),
    "box_from_outline": ProblemKind(
        "repair", "an annotation has no usable bbox; the one around its polygon or RLE is used"
    ),
    "box_rotated": ProblemKind(
        "repair", "a box is rotated (attributes.rotation, or robndbox in XML); the upright box around it is used"
    ),
    "box_differs_from_outline": ProblemKind(
        "note", "a bbox and the box around its polygon or RLE share less than half (IoU); the bbox is used"
    ),
    "box_mask_of_other_shape": ProblemKind(
        "drop", "an annotation has no usable bbox, and its RLE is of another shape than its image"
    ),
    "mask_of_other_size": ProblemKind(
        "repair", "an RLE is of another size than its image and left out; a box that follows from it is scaled"
    ),
    "box_missing": ProblemKind("drop", "an annotation has no bbox"),
    "box_malformed": ProblemKind("drop", "a bbox is not four numbers"),
    "box_not_finite": ProblemKind("drop", "a bbox holds NaN or infinity"),
    "box_negative": ProblemKind("drop", "a bbox has a negative width or height"),
    "box_zero_area": ProblemKind("drop", "a bbox has no area"),
    "box_tiny": ProblemKind("drop", "a bbox is thinner than a hundredth of a pixel"),
    "box_outside": ProblemKind("drop", "a bbox is completely outside its image"),
    "box_clipped": ProblemKind("repair", "a bbox reached out of its image and was clipped to it"),
    "boxes_look_like_corners": ProblemKind("note", "boxes seem to be x1,y1,x2,y2 instead of x,y,width,height"),
    "boxes_look_like_percents": ProblemKind("note", "boxes seem to be percents of the sides; pixels are needed"),
    "corners_from_zero": ProblemKind("repair", "corners of an XML file are 0, and VOC counts pixels from 1"),
    "corners_with_decimals": ProblemKind("repair", "corners of an XML file have decimals, and VOC counts whole pixels"),
    "corners_unclear": ProblemKind(
        "note", "corners are whole, written as 58.0, and none tells what is meant; read as edges, not as VOC's pixels"
    ),
    "area_missing": ProblemKind("repair", "an annotation has no usable area; width x height is used"),
    "iscrowd_malformed": ProblemKind("repair", "iscrowd is neither 0 nor 1; read as 0"),
    "segmentation_malformed": ProblemKind("repair", "a polygon or RLE is invalid and left out; the rest is kept"),
    "category_missing": ProblemKind("drop", "an annotation has no category_id"),
    "category_malformed": ProblemKind("drop", "a category_id is not a whole number"),
    "category_unknown": ProblemKind("drop", "a category_id is not in the list of categories"),
    "category_duplicate_name": ProblemKind("note", "two categories have the same name; they stay two classes"),
    "category_ids_renumbered": ProblemKind("repair", "category ids are not whole numbers; they become 1, 2, ..."),
    "category_unused_root": ProblemKind("note", "a category only groups the others and has no box: left out"),
    "annotation_panoptic": ProblemKind("drop", "a panoptic annotation (segments_info): name the instances file"),
    "annotations_absent": ProblemKind("note", "the file has no list of annotations: images without objects"),
    "objects_all_crowds": ProblemKind(
        "drop", "every object is a crowd, so none is learned; set iscrowd (in VOC: difficult) to 0"
    ),
    "objects_mostly_crowds": ProblemKind(
        "note",
        "most objects are crowds, neither learned nor part of AP; set iscrowd (in VOC: difficult) to 0",
    ),
    "ids_matched": ProblemKind(
        "repair", "annotations refer to ids by other numbers or by names; a single match is used"
    ),
    "annotations_of_other_kind": ProblemKind(
        "note", "a folder holds annotations of another kind as well, which are not read; --format chooses"
    ),
    "annotation_malformed": ProblemKind("drop", "an annotation is not an object with an image_id"),
    "annotation_without_image": ProblemKind("drop", "an annotation belongs to an image that is not listed"),
    "annotation_duplicate_id": ProblemKind("repair", "two annotations have the same id; both are kept and renumbered"),
    "annotation_duplicate_box": ProblemKind("note", "an image has the same box of one class twice; both are kept"),
    # records of images
    "image_malformed": ProblemKind("drop", "an image record is not an object with id and file_name"),
    "image_duplicate_file": ProblemKind("note", "one file is listed under two image ids (a leak between splits?)"),
    "image_id_renumbered": ProblemKind("repair", "image ids are not whole numbers below 2^53; they become 1, 2, ..."),
    "image_size_missing": ProblemKind(
        "repair", "an image record has no usable width and height; those of the file are used"
    ),
    "image_size_wrong": ProblemKind("repair", "width and height differ from the file's; those of the file are used"),
    "image_size_scaled": ProblemKind(
        "repair", "width and height are those of a larger or smaller copy of the image; its boxes are scaled"
    ),
    "image_turned": ProblemKind("repair", "EXIF turns an image and its annotations do not say otherwise: turned"),
    "image_turn_unclear": ProblemKind(
        "note", "EXIF turns an image; its size in the annotations fits both ways or neither: turned"
    ),
    "image_exif_ignored": ProblemKind(
        "note", "EXIF turns an image, but its annotations fit the stored one: not turned"
    ),
    "image_path_outside": ProblemKind("drop", "a file_name leaves the folder of images"),
    "image_file_missing": ProblemKind("drop", "a listed file does not exist"),
    "file_name_repaired": ProblemKind("repair", "a file is found under another form of its name"),
    "label_of_several_images": ProblemKind(
        "note", "images that differ only in their ending have one label file: YOLO gives it to all, VOC to one"
    ),
    "file_name_differs": ProblemKind(
        "note", "an XML file names another image; the image with the name of the XML file is used"
    ),
    # files and folders
    "file_hidden": ProblemKind("note", "a hidden file or folder, or one that the system made; it is never read"),
    "file_not_image": ProblemKind("drop", "a file whose ending is not that of an image"),
    "link_outside": ProblemKind("drop", "a link leads out of its folder; --follow-links follows it"),
    "file_name_unusable": ProblemKind("drop", "the name of a file is not UTF-8 or contains a backslash"),
    "file_name_repeated": ProblemKind("drop", "an archive has a name twice; what it added last is used"),
    "file_unreadable": ProblemKind("drop", "a file or a sub-folder cannot be read, or is a link to nothing"),
    "file_irregular": ProblemKind("drop", "a pipe or a device, which is never opened"),
    # files of images
    "image_empty": ProblemKind("drop", "an image file has 0 bytes"),
    "image_unknown": ProblemKind("drop", "a file is not an image of a known format"),
    "image_damaged": ProblemKind("drop", "an image file is damaged or incomplete"),
    "image_too_large": ProblemKind("drop", "an image has more pixels, or its file more bytes, than the limit"),
    "image_extension_wrong": ProblemKind("note", "a file's extension does not fit its content; the content decides"),
    "image_animated": ProblemKind("note", "an animation, or several pages: the first one is used"),
    "image_bands_left_out": ProblemKind("note", "a TIFF has more than four bands; the first three are used as RGB"),
    "image_extreme_shape": ProblemKind("note", "an image is more than 50 times longer than wide"),
    # content
    "image_duplicate": ProblemKind("note", "images of a dataset are the same file twice"),
    "image_near_duplicate": ProblemKind("note", "images of a dataset show the same: scaled, encoded again or mirrored"),
    "image_leak": ProblemKind(
        "note", "an image is in two datasets, so evaluation on one measures how well the other is remembered"
    ),
    "classes_differ": ProblemKind("note", "two datasets do not have the same classes in the same order"),
    "class_not_in_train": ProblemKind("note", "a class has objects in val or test, but none in train to learn it from"),
    "class_names_alike": ProblemKind("note", "names of classes differ only in case or blanks; they stay classes each"),
    # labels in text form
    "label_line_malformed": ProblemKind("drop", "a label line is not a class and numbers in 0..1"),
    "key_points_left_out": ProblemKind("note", "a label line holds a box and more (key points?); its box is used"),
    "key_points_unclear": ProblemKind("note", "label lines may hold key points; read as polygons (see kpt_shape)"),
    "label_without_image": ProblemKind("note", "a label file belongs to no image"),
    "label_name_unmatched": ProblemKind(
        "drop", "the lines of label files that have no image's name, while most images have no label; rename them"
    ),
    "class_names_found": ProblemKind("info", "the class names are read from a file that lies with the labels"),
    "class_names_ignored": ProblemKind(
        "note", "a file seems to hold names, but not of these labels; name it with --classes if it is meant"
    ),
    "class_names_missing": ProblemKind("info", "a class has no name, so its number is used; --classes names them"),
    "split_missing": ProblemKind("note", "data.yaml names a split, and no image of it is there; the others are read"),
    "class_names_repeated": ProblemKind("note", "two classes have the same name; they stay two classes"),
    "label_file_too_large": ProblemKind("drop", "a label file has more bytes than labels of an image can have"),
    "folder_without_labels": ProblemKind(
        "note", "an image in a folder without any label, beside folders with labels; an empty label file keeps it"
    ),
    "label_file_missing": ProblemKind("note", "an image has no label file; it is used as an image without objects"),
    # samples in shards
    "sample_without_json": ProblemKind("drop", "a sample in a shard has no annotation"),
    "sample_without_image": ProblemKind("drop", "a sample in a shard has no image"),
    "sample_duplicate_member": ProblemKind("drop", "a sample in a shard has the same part twice"),
    "sample_json_damaged": ProblemKind("drop", "a sample's annotation is not JSON, or has an invalid value"),
    "sample_lost": ProblemKind("drop", "a sample could not be read because its shard is incomplete or damaged"),
    "member_ignored": ProblemKind("note", "a shard has a member that does not belong to a sample"),
    "shard_damaged": ProblemKind("drop", "a shard is incomplete, damaged or not a tar file"),
    "shard_empty": ProblemKind("drop", "a shard holds no sample"),
}


MOST_CROWD_SHARE = 0.5
LOSSES_OF_BOXES = (
    *(kind for kind in PROBLEM_KINDS if kind.startswith(("box_", "category_", "annotation_"))),
    *("objects_all_crowds", "label_line_malformed", "label_name_unmatched"),
)
LOSSES_OF_BOXES = tuple(kind for kind in LOSSES_OF_BOXES if PROBLEM_KINDS[kind].outcome == "drop")


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

    def num_boxes_lost(self) -> int:
        """Return the number of annotated objects that were left out."""
        return sum(self.counts.get(kind, 0) for kind in LOSSES_OF_BOXES)

    def main_loss(self) -> str:
        """Return the kind that left out most objects, with its count, its meaning and an example."""
        kind = max(LOSSES_OF_BOXES, key=lambda kind: self.counts.get(kind, 0))
        if kind not in self.counts:
            return self.reasons()
        meaning, example = PROBLEM_KINDS[kind].meaning, self.examples[kind][0]
        return f"{kind}: {self.counts[kind]} ({meaning}, such as {example})"

    def reasons(self, outcomes: Iterable[Outcome] = ("drop",)) -> str:
        """Return what was left out, for the message of an error: each kind with its count and an example."""
        wanted = set(outcomes)
        return ", ".join(
            f"{kind}: {count} (such as {self.examples[kind][0]})"
            for kind, count in sorted(self.counts.items())
            if PROBLEM_KINDS[kind].outcome in wanted
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


def tell_crowds(num_crowds: int, num_boxes: int, problems: ProblemLog) -> None:
    """Count that all or most objects of a dataset are crowds.

    Args:
        num_crowds: How many are.
        num_boxes: The other objects.
        problems: Where it is counted.
    """
    if num_crowds > MOST_CROWD_SHARE * (num_crowds + num_boxes):
        kind = "objects_mostly_crowds" if num_boxes else "objects_all_crowds"
        problems.add(kind, f"{plural(num_crowds, 'crowd')}, {plural(num_boxes, 'other object')}")
