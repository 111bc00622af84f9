"""Objects in an S3 bucket: the only module that knows boto3.

A call that meets a transient fault (no connection, 5xx, SlowDown, a broken body) is tried again with growing pauses
until the storage's patience is over; a call that can never succeed (wrong credentials, no such bucket, permission
denied) fails at once. Endpoint, region and credentials come from the environment that boto3 reads
(``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``), never from specs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from yolofleet.core.redaction import is_ambiguous, redact, redact_error, redact_url
from yolofleet.core.retry import retry
from yolofleet.core.text import plural
from yolofleet.storage.objects import (
    ObjectChangedError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectRange,
    Outages,
    Result,
    Storage,
    StorageError,
    check_key,
    check_length,
    is_key,
    is_transient,
)
from yolofleet.storage.s3_body import ResumingBody

CONNECT_TIMEOUT_SECONDS = 5.0
PASSING_CODES = ("SlowDown", "RequestTimeout", "Throttling", "ConditionalRequestConflict")
"""Refusals after which the same request may succeed; in the last one another write of the object was under way."""
READ_TIMEOUT_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 5.0
MOST_CONNECTIONS = 128
"""More than a process fetches with at a time; those that are not needed are not opened."""
MOST_OBJECT_BYTES = 1 << 50
"""More than any object has."""

logger = logging.getLogger(__name__)


class S3Storage(Storage):
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str, *, patience_seconds: float, outages: Outages | None = None) -> None:
        super().__init__(outages)
        self.bucket = bucket
        self.prefix = prefix
        self.patience_seconds = patience_seconds
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def at(self, key: str) -> dict[str, Any]:
        """Return what names an object in a request."""
        return {"Bucket": self.bucket, "Key": self._name(key)}

    def call(self, what: str, key: str, action: Callable[[Any], Result]) -> Result:
        """Run ``action(client)``; transient faults are retried until the patience is over."""

        def attempt() -> Result:
            try:
                result = action(_client())
            except StorageError:  # the key is not possible
                raise
            except Exception as error:
                failure = self._translate(error, what, key)
                if failure.transient:
                    self.outages.note_fault(str(failure))
                else:
                    self.outages.note_answer()  # a refusal is an answer
                raise failure from redact_error(error)
            self.outages.note_answer()
            return result

        return retry(
            attempt,
            patience_seconds=self.patience_seconds,
            is_transient=is_transient,
            longest_pause_seconds=LONGEST_PAUSE_SECONDS,
            is_from_first_failure=True,  # what is large may take longer than the patience
        )

    def _translate(self, error: Exception, what: str, key: str) -> StorageError:
        """Translate a boto3 failure: what was tried, what came back, what to do."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions

        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
            error = error.__context__  # what S3 has answered
        where = f"{self.url}/{key}".rstrip("/")
        endpoint = redact_url(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS")
        if isinstance(error, exceptions.ClientError):
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                return StorageError(f"{where}: there is no bucket '{self.bucket}' at {endpoint}; create it first")
            if code in ("404", "NoSuchKey", "NotFound"):
                return ObjectNotFoundError(f"{where}: no such object at {endpoint}")
            if status in (412, 416):
                changed = "the object has changed, or is too short"
                return ObjectChangedError(f"{where}: {what} was refused by {endpoint} ({code}): {changed}")
            if status in (401, 403) or code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"):
                return StorageError(
                    f"{where}: {what} was refused by {endpoint} ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and the bucket's policy"
                )
            transient = status >= 500 or status == 429 or code in PASSING_CODES
            return StorageError(f"{where}: {what} failed at {endpoint}: {code} ({status})", transient=transient)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return StorageError(
                f"{where}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an IAM role"
            )
        if isinstance(error, exceptions.ParamValidationError | exceptions.InvalidRegionError | ValueError):
            return StorageError(f"{where}: {what} is not possible: {redact(str(error))}")
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
        return self.get_from(key, 0)

    def get_from(self, key: str, start: int, most_bytes: int | None = None) -> bytes:
        last = "" if most_bytes is None else start + most_bytes - 1
        try:
            return self._read(key, f"bytes={start}-{last}" if start or most_bytes else None)
        except ObjectChangedError:  # it has not that many bytes
            return b""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = self._read(key, f"bytes={start}-{start + length - 1}")
        return check_length(data, length, f"{self.url}/{key}", start)

    def _read(self, key: str, span: str | None) -> bytes:
        request = self.at(key) | ({"Range": span} if span else {})
        return self.call("reading", key, lambda client: bytes(client.get_object(**request)["Body"].read()))

    def open_stream(self, key: str) -> BufferedReader:
        return BufferedReader(ResumingBody(self, key), buffer_size=1 << 20)

    def stream_bytes(self, stream: BufferedReader) -> int:
        return int(getattr(stream.raw, "object_bytes"))  # noqa: B009 - BufferedReader hides the type of `ResumingBody`

    def open_range(self, key: str, start: int, length: int, version: str | None = None) -> ObjectRange:
        body = ResumingBody(self, key, start, start + length, version)
        return ObjectRange(BufferedReader(body, 1 << 20), body.end - start, body.object_bytes, body.version)

    def put(self, key: str, data: bytes | bytearray | Path) -> None:
        def write(client: Any) -> None:
            if isinstance(data, Path):
                client.upload_file(str(data), self.bucket, self._name(key))
            else:
                client.put_object(**self.at(key), Body=data)

        self.call("writing", key, write)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.exists(key):  # also serves endpoints that ignore the condition
            return False
        return self._put_on_condition(key, data)

    def _put_on_condition(self, key: str, data: bytes) -> bool:
        """Write the object with ``If-None-Match: *`` alone; returns whether it was written."""
        from botocore.exceptions import ClientError

        def write(client: Any) -> bool:
            try:
                client.put_object(**self.at(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code in ("PreconditionFailed", "412"):
                    return False
                if code != "NotImplemented":
                    raise
                client.put_object(**self.at(key), Body=data)
            return True

        return self.call("writing", key, write)

    def honours_conditions(self, key: str) -> bool:
        try:
            return self._put_on_condition(key, b"first") and not self._put_on_condition(key, b"second")
        finally:
            self.delete(key)

    def holds_markers(self, key: str) -> bool:
        name, below = f"{self._name(key)}/", f"{key}/object"
        try:
            self.call("writing", name, lambda client: client.put_object(Bucket=self.bucket, Key=name, Body=b""))
            self.put(below, b"")
            return self.exists(below)
        except StorageError:
            return False
        finally:
            with suppress(StorageError):
                self.delete(below)
            self.call("deleting", name, lambda client: client.delete_object(Bucket=self.bucket, Key=name))

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        base = f"{self.prefix}/" if self.prefix else ""

        def read(client: Any) -> list[ObjectInfo]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
            return [
                ObjectInfo(str(entry["Key"])[len(base) :], int(entry["Size"]), entry["LastModified"].timestamp())
                for page in pages
                for entry in page.get("Contents", [])
                if str(entry["Key"]).startswith(base + prefix) and not str(entry["Key"]).endswith("/")
            ]

        listed = self.call("listing", prefix, read)
        found = [entry for entry in listed if is_key(entry.key) and 0 <= entry.size_bytes <= MOST_OBJECT_BYTES]
        if left_out := len(listed) - len(found):
            objects = plural(left_out, "object")
            logger.warning("%s/%s: %s with an impossible key or size are left out", self.url, prefix, objects)
        return sorted(found, key=lambda entry: entry.key)

    def size_bytes(self, key: str) -> int:
        return self.call("looking up", key, lambda client: int(client.head_object(**self.at(key))["ContentLength"]))

    def delete(self, key: str) -> None:
        self.call("deleting", key, lambda client: client.delete_object(**self.at(key)))

    def child(self, prefix: str) -> Storage:
        name = self._name(prefix.strip("/"))
        return S3Storage(self.bucket, name, patience_seconds=self.patience_seconds, outages=self.outages)


def _client() -> Any:
    """Return the client for this process and its present AWS_ variables."""
    for name, value in list(os.environ.items()):
        if (name.startswith("AWS_ENDPOINT_URL") or name.lower().endswith("_proxy")) and is_ambiguous(value):
            raise StorageError(f"{name} {redact_url(value)}: clients disagree where its secret ends; percent-encode it")
    names = sorted(name for name in list(os.environ) if name.startswith("AWS_"))
    return _s3_client(os.getpid(), tuple((name, os.environ.get(name, "")) for name in names))


@lru_cache(maxsize=4)
def _s3_client(process_id: int, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return the client of a process and an environment: it reads that once, and its connections must not be forked."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # `retry` knows how long to wait
            max_pool_connections=MOST_CONNECTIONS,
            request_checksum_calculation="when_required",  # servers other than AWS refuse the trailing checksums
            response_checksum_validation="when_required",
        ),
    )
