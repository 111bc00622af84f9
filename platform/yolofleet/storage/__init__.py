"""Objects at ``file://`` and ``s3://``: one small interface, whole-object atomic writes, bounded retries.

Every other module sees keys below a root and nothing of S3.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import unquote

from yolofleet.core.local_files import local_path
from yolofleet.core.redaction import holds_secret, redact_url
from yolofleet.core.text import split_url
from yolofleet.storage.local import FileStorage
from yolofleet.storage.objects import (
    ObjectChangedError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectRange,
    Storage,
    StorageError,
    StoredFile,
    check_key,
    is_transient,
)

__all__ = [
    "ObjectChangedError",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectRange",
    "Storage",
    "StorageError",
    "StoredFile",
    "check_key",
    "is_transient",
    "open_file",
    "open_storage",
]

DEFAULT_PATIENCE_SECONDS = 20.0


def open_storage(url: str | Path, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> Storage:
    """Open the storage at a path, a ``file://`` URL or an ``s3://bucket/prefix`` URL.

    Raises:
        StorageError: It is no URL or holds a secret, its scheme is unknown or the bucket is missing.
    """
    text = str(url)
    if holds_secret(text):
        raise StorageError(
            f"{redact_url(text)}: a URL takes no key, token or password; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    parts = split_url(text, StorageError)
    if parts.scheme in ("", "file") or (len(parts.scheme) == 1 and os.name == "nt"):
        path = unquote(parts.path) if parts.scheme == "file" else text
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise StorageError(f"{text}: a file URL needs three slashes: file:///{parts.netloc}{parts.path}")
        return FileStorage(local_path(path))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StorageError(f"{text}: an S3 URL needs a bucket: s3://BUCKET/PREFIX")
        from yolofleet.storage.s3 import S3Storage  # boto3 is not needed for folders

        return S3Storage(parts.netloc, parts.path.strip("/"), patience_seconds=patience_seconds)
    raise StorageError(f"{text}: unknown scheme '{parts.scheme}://'; use a path, file:// or s3://")


def open_file(text: str | Path, *, beside: Path | StoredFile | None = None) -> Path | StoredFile:
    """Return the file that a user names by its path or URL; nothing is read yet.

    Args:
        text: A path, or a URL as of `open_storage`.
        beside: The file from whose folder a relative path counts; None: the folder that the command runs in.

    Raises:
        StorageError: The URL names no storage, or a bucket and no object.
    """
    url = str(text)
    if "://" not in url:
        if not isinstance(beside, StoredFile):
            return Path(url) if beside is None else beside.parent / url
        scheme, _, path = beside.url.partition("://")
        bucket, _, key = path.partition("/")
        url = f"{scheme}://{bucket}/{posixpath.normpath(posixpath.join('/', posixpath.dirname(key), url)).lstrip('/')}"
    folder, _, name = url.rpartition("/")
    if not name or folder.endswith("/"):
        raise StorageError(f"{url}: names no file; give its whole URL, such as s3://BUCKET/FOLDER/job.yaml")
    return StoredFile(url, open_storage(folder), name)
