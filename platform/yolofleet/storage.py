"""Objects at ``file://`` and ``s3://``: one small interface, whole-object atomic writes, bounded retries.

Every other module sees keys below a root and nothing of S3. A call that meets a passing fault (no connection, 5xx,
SlowDown, a broken body) is tried again with growing pauses until ``patience_seconds`` are over; a call that can never
succeed (wrong credentials, no such bucket, permission denied) fails at once. Endpoint, region and credentials come
from the environment that boto3 reads (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``): never from specs.
"""

from __future__ import annotations

import errno
import io
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from yolofleet.errors import UserError

DEFAULT_PATIENCE_SECONDS = 20.0
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 20.0
TEMPORARY_PREFIX = ".tmp-"

Result = TypeVar("Result")


class StorageError(UserError):
    """An object could not be read or written; ``transient`` tells whether waiting may help."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class ObjectNotFoundError(StorageError):
    """There is no such object."""


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its key below the storage's root, and its size."""

    key: str
    size_bytes: int


class Storage(ABC):
    """Objects below one root. Keys are relative, with ``/`` between their parts, and never leave the root."""

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``; a shorter object is an error."""

    @abstractmethod
    def open_stream(self, key: str) -> BinaryIO:
        """Open the object for one sequential read; a broken connection goes on where it stopped."""

    @abstractmethod
    def put(self, key: str, data: bytes | Path) -> None:
        """Write the whole object; readers see the old one or the new one, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; returns whether it was written (atomic where the endpoint allows)."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return every object whose key starts with ``prefix``, sorted by key."""

    @abstractmethod
    def size_bytes(self, key: str) -> int:
        """Return the object's size."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""

    @abstractmethod
    def child(self, prefix: str) -> Storage:
        """Return the storage whose root is ``prefix`` below this one's."""

    def local_path(self, key: str) -> Path | None:
        """Return the object's path on this machine's disk, or None where it is remote."""
        return None

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        try:
            self.size_bytes(key)
        except ObjectNotFoundError:
            return False
        return True

    def download(self, key: str, path: Path) -> None:
        """Copy the object to a local file, which appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with self.open_stream(key) as source, temporary.open("wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every object whose key starts with ``prefix``."""
        for entry in self.list(prefix):
            self.delete(entry.key)


def open_storage(url: str | Path, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> Storage:
    """Open the storage at a path, a ``file://`` URL or an ``s3://bucket/prefix`` URL.

    Raises:
        StorageError: The URL's scheme is unknown or the bucket is missing.
    """
    text = str(url)
    parts = urlsplit(text)
    if parts.scheme in ("", "file") or (len(parts.scheme) == 1 and os.name == "nt"):
        path = unquote(parts.path) if parts.scheme == "file" else text
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise StorageError(f"{text}: a file URL needs three slashes: file:///{parts.netloc}{parts.path}")
        return FileStorage(Path(path).expanduser().absolute())
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StorageError(f"{text}: an S3 URL needs a bucket: s3://BUCKET/PREFIX")
        return S3Storage(parts.netloc, parts.path.strip("/"), patience_seconds=patience_seconds)
    raise StorageError(f"{text}: unknown scheme '{parts.scheme}://'; use a path, file:// or s3://")


def checked_key(key: str) -> str:
    """Return the key, or raise if it would leave its root."""
    parts = key.split("/")
    if not key or key.startswith("/") or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"key {key!r} is not a plain relative path; use names joined by '/', without '..'")
    return key


class FileStorage(Storage):
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def get(self, key: str) -> bytes:
        return _guard_file(self._path(key), lambda path: path.read_bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        def read(path: Path) -> bytes:
            with path.open("rb") as source:
                source.seek(start)
                return source.read(length)

        data = _guard_file(self._path(key), read)
        return _checked_length(data, length, f"{self.url}/{key}", start)

    def open_stream(self, key: str) -> BinaryIO:
        return _guard_file(self._path(key), lambda path: path.open("rb"))

    def put(self, key: str, data: bytes | Path) -> None:
        target = self._path(key)
        _guard_file(target, lambda path: self._write(path, data, exclusive=False))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return _guard_file(self._path(key), lambda path: self._write(path, data, exclusive=True))

    def _write(self, target: Path, data: bytes | Path, *, exclusive: bool) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as sink:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while block := source.read(1 << 20):
                            sink.write(block)
                else:
                    sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            if exclusive:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            else:
                temporary.replace(target)
            _sync_folder(target.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        start = self.root / prefix.rpartition("/")[0] if "/" in prefix else self.root
        found = []
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not name.startswith(TEMPORARY_PREFIX):
                    try:
                        found.append(ObjectInfo(key, path.stat().st_size))
                    except FileNotFoundError:  # removed by someone else since the walk saw it
                        continue
        return sorted(found, key=lambda entry: entry.key)

    def size_bytes(self, key: str) -> int:
        path = self._path(key)
        if path.is_dir():
            raise ObjectNotFoundError(f"{path}: is a folder, not a file")
        return _guard_file(path, lambda existing: existing.stat().st_size)

    def delete(self, key: str) -> None:
        path = self._path(key)
        _guard_file(path, lambda existing: existing.unlink(missing_ok=True))
        for folder in path.parents:  # a folder without files is nothing in an object store
            if folder == self.root or not folder.is_relative_to(self.root):
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def child(self, prefix: str) -> Storage:
        return FileStorage(self._path(prefix.strip("/")))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _guard_file(path: Path, action: Callable[[Path], Result]) -> Result:
    try:
        return action(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ObjectNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise StorageError(f"{path}: permission denied; check the owner and mode of the file and its folder") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "the disk is full; free some space" if full else (error.strerror or str(error))
        raise StorageError(f"{path}: {cure}", transient=full) from error


def _checked_length(data: bytes, length: int, name: str, start: int) -> bytes:
    if len(data) != length:
        raise StorageError(f"{name}: wanted {length} bytes at {start}, the object ends after {len(data)} of them")
    return data


class S3Storage(Storage):
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str, *, patience_seconds: float) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.patience_seconds = patience_seconds
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _call(self, what: str, key: str, action: Callable[[Any], Result]) -> Result:
        """Run ``action(client)``; passing faults are tried again until the patience is over."""
        give_up = time.monotonic() + self.patience_seconds
        pause_seconds = 0.2
        while True:
            try:
                return action(_s3_client(os.getpid()))
            except Exception as error:
                failure = self._explained(error, what, key)
                if not failure.transient or time.monotonic() + pause_seconds > give_up:
                    raise failure from error
            time.sleep(pause_seconds * random.uniform(0.8, 1.2))
            pause_seconds = min(pause_seconds * 2, 5.0)

    def _explained(self, error: Exception, what: str, key: str) -> StorageError:
        """Translate a boto3 failure: what was tried, what came back, what to do."""
        from botocore import exceptions

        where = f"{self.url}/{key}".rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        if isinstance(error, StorageError):
            return error
        if isinstance(error, exceptions.ClientError):
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                return StorageError(f"{where}: there is no bucket '{self.bucket}' at {endpoint}; create it first")
            if code in ("404", "NoSuchKey", "NotFound"):
                return ObjectNotFoundError(f"{where}: no such object at {endpoint}")
            if status in (401, 403) or code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"):
                return StorageError(
                    f"{where}: {what} was refused by {endpoint} ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and the bucket's policy"
                )
            transient = status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling")
            return StorageError(f"{where}: {what} failed at {endpoint}: {code} ({status})", transient=transient)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return StorageError(
                f"{where}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an IAM role"
            )
        if isinstance(error, exceptions.ParamValidationError | exceptions.InvalidRegionError | ValueError):
            return StorageError(f"{where}: {what} is not possible: {error}")
        if isinstance(error, FileNotFoundError | PermissionError):
            return StorageError(f"{where}: {what} cannot read the local file: {error}")
        if isinstance(error, exceptions.BotoCoreError | OSError) or type(error).__module__.startswith("urllib3"):
            return StorageError(
                f"{where}: {what} got no answer from {endpoint} ({type(error).__name__}); "
                "check AWS_ENDPOINT_URL and the network",
                transient=True,
            )
        return StorageError(f"{where}: {what} failed: {type(error).__name__}: {error}")

    def get(self, key: str) -> bytes:
        def read(client: Any) -> bytes:
            answer = client.get_object(Bucket=self.bucket, Key=self._name(key))
            return bytes(answer["Body"].read())

        return self._call("reading", key, read)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        def read(client: Any) -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            answer = client.get_object(Bucket=self.bucket, Key=self._name(key), Range=span)
            return bytes(answer["Body"].read())

        return _checked_length(self._call("reading", key, read), length, f"{self.url}/{key}", start)

    def open_stream(self, key: str) -> BinaryIO:
        return io.BufferedReader(_ResumingBody(self, key), buffer_size=1 << 20)

    def put(self, key: str, data: bytes | Path) -> None:
        def write(client: Any) -> None:
            if isinstance(data, Path):
                client.upload_file(str(data), self.bucket, self._name(key))
            else:
                client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data)

        self._call("writing", key, write)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        if self.exists(key):  # also serves endpoints that ignore the condition below
            return False

        def write(client: Any) -> bool:
            try:
                client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
                    return False
                raise
            return True

        return self._call("writing", key, write)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        base = f"{self.prefix}/" if self.prefix else ""

        def read(client: Any) -> list[ObjectInfo]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
            return [
                ObjectInfo(str(entry["Key"])[len(base) :], int(entry["Size"]))
                for page in pages
                for entry in page.get("Contents", [])
                if not str(entry["Key"]).endswith("/")
            ]

        return sorted(self._call("listing", prefix, read), key=lambda entry: entry.key)

    def size_bytes(self, key: str) -> int:
        return self._call(
            "looking up",
            key,
            lambda client: int(client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]),
        )

    def delete(self, key: str) -> None:
        self._call("deleting", key, lambda client: client.delete_object(Bucket=self.bucket, Key=self._name(key)))

    def child(self, prefix: str) -> Storage:
        name = self._name(prefix.strip("/"))
        return S3Storage(self.bucket, name, patience_seconds=self.patience_seconds)


class _ResumingBody(io.RawIOBase):
    """One S3 object read from front to back; after a broken connection it asks for the rest of the same object."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._offset = 0
        self._body: Any = None
        self._etag: str | None = None
        self._size_bytes = 0
        storage._call("reading", key, self._open)

    def readable(self) -> bool:
        return True

    def _open(self, client: Any) -> None:
        request: dict[str, Any] = {"Bucket": self._storage.bucket, "Key": self._storage._name(self._key)}
        if self._offset:
            request |= {"Range": f"bytes={self._offset}-", "IfMatch": self._etag}
        answer = client.get_object(**request)
        self._body = answer["Body"]
        if not self._offset:
            self._etag = answer["ETag"]
            self._size_bytes = int(answer["ContentLength"])

    def readinto(self, buffer: Any) -> int:
        def read(client: Any) -> bytes:
            if self._body is None:
                self._open(client)
            try:
                data = bytes(self._body.read(len(buffer)))
            except Exception:
                self._body = None
                raise
            if not data and self._offset < self._size_bytes:  # the body ended early without an error
                self._body = None
                raise ConnectionError(f"body ended at byte {self._offset} of {self._size_bytes}")
            return data

        if self._offset >= self._size_bytes:
            return 0
        data = self._storage._call("reading", self._key, read)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
        super().close()


@lru_cache(maxsize=4)
def _s3_client(process_id: int) -> Any:
    """Return this process's client (connections must not cross a fork); boto3 clients are safe among threads."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # our own loop knows how long to wait
            max_pool_connections=16,
            request_checksum_calculation="when_required",  # servers other than AWS refuse the trailing checksums
            response_checksum_validation="when_required",
        ),
    )
