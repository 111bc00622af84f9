"""The content of one S3 object as a stream that outlasts broken connections."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolofleet.storage.s3 import S3Storage


class ResumingBody(io.RawIOBase):
    """One S3 object, or a range of it, read from front to back; after a broken connection it asks for the rest of it.

    Attributes:
        end: Where it ends: before the byte of this number.
        object_bytes: Size of the object.
        version: Its ETag.
    """

    def __init__(
        self, storage: S3Storage, key: str, start: int = 0, end: int | None = None, version: str | None = None
    ) -> None:
        self._storage = storage
        self._key = key
        self._offset = start
        self._body: Any = None
        self._asked_end = end
        self.end = 0
        self.object_bytes = 0
        self.version = version
        storage.call("reading", key, self._open)

    def readable(self) -> bool:
        """Return True."""
        return True

    def _open(self, client: Any) -> None:
        request = self._storage.at(self._key)
        if self._offset or self._asked_end is not None:
            last = "" if self._asked_end is None else self._asked_end - 1
            request["Range"] = f"bytes={self._offset}-{last}"
        if self.version is not None:
            request["IfMatch"] = self.version
        answer = client.get_object(**request)
        found = answer.get("ContentRange")  # bytes 0-99/1000; None: the whole object, whatever was asked for
        if found is None and self._offset:
            raise ConnectionError(f"the answer is not the range from byte {self._offset} on")
        self._body = answer["Body"]
        if not self.end:
            self.version = answer.get("ETag")
            self.end = self._offset + int(answer["ContentLength"])
            self.object_bytes = int(found.rpartition("/")[2]) if found else self.end

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; a broken connection is replaced by a new one."""

        def read(client: Any) -> bytes:
            if self._body is None:
                self._open(client)
            body, self._body = self._body, None  # a broken one is not read again
            data = bytes(body.read(len(buffer)))
            if not data:  # the body ended early without an error
                raise ConnectionError(f"body ended at byte {self._offset} of {self.end}")
            self._body = body
            return data

        if self._offset >= self.end:
            return 0
        data = self._storage.call("reading", self._key, read)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if self._body is not None:
            self._body.close()
            self._body = None
        super().close()
