"""The folders that ``yolofleet predict`` writes into: none that holds the images, and no file of the user's is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from yolofleet.core.errors import UserError

RECORDS_NAME = "detections.json"
PART_NAME = ".detections.json.part"
"""The records until all images are predicted; empty, and there before the first drawing."""
MAPS_NAME = "objectness.txt"
MAPS_TEXT = "The maps here are of 'yolofleet predict --objectness', which overwrites them.\n"
MARKS = (RECORDS_NAME, PART_NAME, MAPS_NAME)
"""Where one of them lies, an earlier prediction has written: it may be overwritten."""


def output_folders(out: str, objectness: Path | None) -> dict[str, Path]:
    """Return the local folders to write into, without links, by the options that name them."""
    named = {"--out": out.removeprefix("file://"), "--objectness": str(objectness or "")}
    return {option: Path(os.path.realpath(text)) for option, text in named.items() if text and "://" not in text}


def check_separate(option: str, folder: Path, images: Iterable[Path]) -> None:
    """Raise `UserError` where a folder to write into holds one of the images."""
    for path in images:
        if str(folder) in (os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))):
            raise UserError(
                f"{option} {folder} holds the image {path}: what is written there would overwrite the images, or lie "
                "among them; choose another folder"
            )


def check_overwriting(folder: Path, names: Iterable[str]) -> None:
    """Raise `UserError` where one of the files to write is there, and no earlier prediction has made it.

    A link is nobody's mark: predictions make none, and what is written through one is lost somewhere else.
    """
    marks = [folder / mark for mark in MARKS]
    is_own = any(mark.is_file() and not mark.is_symlink() for mark in marks)
    for path in (*(folder / name for name in names), *filter(Path.is_symlink, marks)):
        if os.path.lexists(path) and (path.is_symlink() or not is_own):
            raise UserError(
                f"{path} is there already, and no earlier prediction made it: choose another folder, or remove it"
            )


def write_new(path: Path, text: str) -> None:
    """Write a file that an earlier prediction may have left; never through a link."""
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as file:  # which follows no link
        file.write(text)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none; raises `UserError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
