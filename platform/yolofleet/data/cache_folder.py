"""The folder of the shard cache: this user's alone, and nothing outside of it is ever opened.

What lies in the folder is trusted, so nobody else may write to it: it belongs to this user, has mode 0700 and is no
link. Its files are opened as they are, never through a link.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import local_path

_OF_A_CACHE = re.compile(r"lock|locks|verified|evict|\d\d|[0-9a-f]{64}(\.(tar|index|part))?")


class CacheError(UserError):
    """A shard cannot be fetched into the cache."""


def open_file(path: Path, flags: int) -> int:
    """Open a file of the cache, never through a link, and return its descriptor.

    Raises:
        FileNotFoundError: There is none.
        CacheError: It cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(f"cache {path}: cannot be opened ({error.strerror}); remove it") from error


def own_folder(path: Path) -> Path:
    """Return the absolute path of a folder that this user alone can use; it is made where it is missing.

    Raises:
        CacheError: It cannot be made, or somebody else could have put something into it.
    """
    folder = local_path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        mode, wrong = stat.S_IMODE(status.st_mode), None
        if status.st_uid != os.geteuid():
            wrong = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
        elif stat.S_ISLNK(status.st_mode):
            wrong = "is a link"
        elif mode & 0o022 or (mode & 0o077 and not all(_OF_A_CACHE.fullmatch(path.name) for path in folder.iterdir())):
            wrong = f"can be used by others (mode {mode:04o})"
        elif mode & 0o077:  # an older version made it
            folder.chmod(0o700)
    except OSError as error:
        raise CacheError(f"cache.path {folder}: cannot be made: {error.strerror}") from error
    if wrong is not None:
        raise CacheError(
            f"cache.path {folder}: {wrong}; name a folder that does not exist yet, or make it yours alone (chmod 700)"
        )
    return folder
