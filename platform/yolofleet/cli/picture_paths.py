"""Arguments that name pictures, or folders of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def picture_paths(images: list[Path]) -> Iterator[Path]:
    """The pictures that the arguments name; of a folder those in it whose name says picture."""
    from yolofleet.data.manifest import MANIFEST_KEY
    from yolofleet.errors import UserError

    for path in images:
        if (path / MANIFEST_KEY).is_file():
            raise UserError(f"{path} is a sharded dataset: predict it alone and with --workers N")
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise UserError(f"{path} is a folder without pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
            yield from inside
        elif not path.exists():
            raise UserError(f"there is no picture {path}")
        else:
            yield path
