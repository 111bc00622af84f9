"""Finding the annotations and images of a folder, whichever tool wrote it.

Known are COCO files, YOLO labels (with data.yaml, with Darknet's obj.data, or alone) and VOC, in the folders of CVAT,
Roboflow, Label Studio, FiftyOne, Datumaro and the datasets themselves. Beside the names of the files, only those are
read that say more: data.yaml, lists of images and of classes, whether a JSON or XML file is one of annotations, and
the images that these name.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural
from yolofleet.data.annotation_kind import COCO_ENDINGS
from yolofleet.data.file_tree import FileTree, Read
from yolofleet.data.layout import Layout
from yolofleet.data.layout_coco import find_coco, find_voc
from yolofleet.data.layout_yolo import find_darknet, find_data_yaml, find_labels
from yolofleet.data.other_tools import ENDINGS_OF_TOOLS, other_tool


def find_layout(keys: Sequence[str], read: Read, named: str | None = None, folder: str = "the folder") -> Layout:
    """Find the annotations and images of a folder.

    Args:
        keys: Every file of the folder.
        read: Reads one.
        named: The file that the user named: a data.yaml or a COCO file; None finds it.
        folder: The folder in messages.

    Raises:
        UserError: There are no annotations that can be read, or several sets of them.
    """
    tree = FileTree(keys)
    if not tree.images:
        archives = and_more(tree.ending(".zip"), 3)
        cure = f"name the archive: {archives}" if archives else "name the folder that holds them"
        raise UserError(f"{folder}: no images here, in {plural(len(tree.keys), 'file')}; {cure}")
    if named is not None:
        finders = [find_data_yaml, find_darknet] if not named.lower().endswith(COCO_ENDINGS) else [find_coco]
    else:
        finders = [find_data_yaml, find_darknet, find_coco, find_voc, find_labels]
    for find in finders:
        if (layout := find(tree, read, named, folder)) is not None:
            return layout
    raise UserError(_why_none(tree, read, named, folder))


def _why_none(tree: FileTree, read: Read, named: str | None, folder: str) -> str:
    for ending in ENDINGS_OF_TOOLS:
        for key in [named] if named is not None else tree.ending(ending)[:3]:
            if key.lower().endswith(ending) and (what := other_tool(key, read(key))) is not None:
                return f"{folder}: {key} {what}"
    if named is not None:
        return f"{folder}/{named}: no data.yaml with train and names, and no COCO annotations; name the folder"
    return (
        f"{folder}: {plural(len(tree.images), 'image')}, but no annotations of theirs: no data.yaml, no COCO file "
        "(*.json), no VOC files (*.xml), no YOLO label (*.txt) with the name of an image; name the folder that holds "
        "both"
    )
