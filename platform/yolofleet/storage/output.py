"""Where a command writes: a local file or folder, or a storage, which gets it once it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolofleet.core.temporary import temporary_folder
from yolofleet.storage import StorageError, open_storage


@contextmanager
def stored_output(target: str) -> Iterator[Path]:
    """Yield a local path for the length of a with block; what is written there, a file or a folder, is the target.

    A remote target gets it at the end of the block, with what lies beside it, and nothing where the block raises.

    Raises:
        StorageError: The target names no object, or the storage does not take it.
    """
    if not target.startswith("s3://"):
        yield Path(target.removeprefix("file://"))
        return
    parent, _, name = target.rstrip("/").rpartition("/")
    if not name or parent in ("", "s3:/", "s3://"):
        raise StorageError(f"{target}: names no file or folder; write s3://BUCKET/NAME")
    storage = open_storage(parent)
    with temporary_folder() as folder:
        path = folder / name
        yield path
        for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
            storage.put(file.relative_to(folder).as_posix(), file)
