"""Local files that a user names: the path that is meant, and their content, bounded.

A name can lead to a device, a pipe or a file of many gigabytes; none of them may hang a command or fill the memory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError

CHUNK_BYTES = 1 << 20
CACHE_VARIABLE = "YOLOFLEET_CACHE"
"""The folder that keeps what was downloaded; ``~/.cache/yolofleet`` by default."""


def local_path(text: str | Path) -> Path:
    """Return a path as an absolute one, ``~`` replaced by the home folder.

    Raises:
        UserError: There is no such user, or no path can be written so.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: a path must not contain a NUL character")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        user = Path(text).parts[0]
        raise UserError(f"{text}: this machine has no home folder for '{user}'; write the whole path") from None


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
            raise OSError(
                errno.EINVAL,
                "is a folder; name a file"
                if stat.S_ISDIR(status.st_mode)
                else "is a pipe or a device, not a regular file",
                str(path),
            )
        if status.st_size > most_bytes:
            reason = f"has {format_bytes(status.st_size)}, more than the {format_bytes(most_bytes)} that are read"
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
        data = file.read(os.fstat(file.fileno()).st_size)  # what is asked for is allocated, so never the bound itself
        while len(data) <= most_bytes and (more := file.read(CHUNK_BYTES)):  # it grows; /proc says 0 bytes
            data += more
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"has more than the {format_bytes(most_bytes)} that are read", str(path))
    return data


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a regular file, in small hexadecimal digits.

    Raises:
        OSError: As `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path, sys.maxsize) as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder of what this user has fetched: ``YOLOFLEET_CACHE``, else ``~/.cache/yolofleet``."""
    if given := os.environ.get(CACHE_VARIABLE):
        return local_path(given)
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "yolofleet"


def private_folder(path: Path) -> Path:
    """Return a folder that this user alone can use (mode 0700); it is made where it is missing.

    Raises:
        UserError: It cannot be made, is a link, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise UserError(
                f"{path}: others can write there, or it is a link; make it private (chmod 700), or name another "
                f"folder in {CACHE_VARIABLE}"
            )
        path.chmod(0o700)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made: {error.strerror or error}; name another folder in {CACHE_VARIABLE}"
        ) from None
    return path
