"""Changing the files in the archive of a version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolofleet.registry.package import open_archive, pack_archive, remove_archived


@contextmanager
def unpacked(folder: Path) -> Iterator[None]:
    """Have what is in a version's archive beside it within a with block, and in a new archive afterwards."""
    open_archive(folder)
    yield
    pack_archive(folder)
    remove_archived(folder)
