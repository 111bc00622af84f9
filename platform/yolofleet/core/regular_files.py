"""Opening files that may be anything: regular ones of a bounded size are read, all else is an `OSError` at once.

A FIFO blocks whoever opens it plainly, a device never ends, and a sparse file of a few bytes on disk fills the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path, most_bytes: int) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: It cannot be opened, is not a regular file, or is larger; its ``strerror`` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if status.st_size > most_bytes:
            reason = f"it has {status.st_size:,} bytes, more than the {most_bytes:,} that it may have"
            raise OSError(errno.EFBIG, reason, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, most_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        OSError: As `open_regular`.
    """
    with open_regular(path, most_bytes) as file:
        data = file.read(most_bytes + 1)  # not all of it: it may grow, and the files of /proc say that they are empty
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than the {most_bytes:,} bytes that it may have", str(path))
    return data
