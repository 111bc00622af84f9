"""Local files that a user names: the path that is meant, and their content, bounded.

A name can lead to a device, a pipe or a file of many gigabytes; none of them may hang a command or fill the memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError


def local_path(text: str | Path) -> Path:
    """Return a path as an absolute one, ``~`` replaced by the home folder.

    Raises:
        UserError: There is no such user, or no path can be written so.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: a path holds no NUL character; write it without one")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        user = Path(text).parts[0]
        raise UserError(f"{text}: this machine knows no home folder of '{user}'; write the whole path") from None


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file of at most this size.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened or read.
        UserError: It is no regular file, or too large.
    """
    # Not blocking: a pipe that nobody writes into would let the open wait for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder; name a file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is a pipe or a device, not a regular file; name a file")
        data = b"" if status.st_size > most_bytes else file.read(most_bytes + 1)  # /proc states a size of 0
    if max(status.st_size, len(data)) > most_bytes:
        seen = format_bytes(max(status.st_size, len(data)))
        raise UserError(f"{path}: {seen}, more than the {format_bytes(most_bytes)} that are read; name another file")
    return data
