"""Temporary folders that do not outlive their process, whatever ends it.

Each folder is locked by its process as long as that lives: the system gives the lock up for a process that was killed.
So the next one to make such a folder removes exactly those that no one uses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yolofleet.core.errors import UserError

PREFIX = "yolofleet-locked-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where nothing more can be written."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder for the length of a with block, after removing those of processes that were killed.

    Raises:
        UserError: The folder of temporary files takes no more.
    """
    try:
        remove_leftovers()
        folder, lock = _make_locked()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        if error.errno not in FULL and "temporary directory" not in str(error):
            raise
        where = os.environ.get("TMPDIR", "the folder of temporary files")
        reason = "not writable" if error.errno == errno.ENOENT else error.strerror
        raise UserError(f"{where}: {reason}; free space there, raise ulimit -f, or name another in TMPDIR") from error


def _make_locked() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another thread or process found it before it was locked, and removed it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else it was removed just before
            return folder, lock
        os.close(lock)


def remove_leftovers() -> None:
    """Remove the folders whose process has ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, in use, or gone by now
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
