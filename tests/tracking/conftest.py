"""Storages for the tests of the run directory: a folder, and objects without any file behind them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from yolofleet.storage import ObjectInfo, ObjectNotFoundError, Storage, StorageError, open_storage


class MemoryStorage(Storage):
    """An object store in memory that can be switched off and knows what it was asked."""

    def __init__(self, objects: dict[str, bytes] | None = None, prefix: str = "") -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {} if objects is None else objects
        self.prefix = prefix
        self.url = f"memory://{prefix}"
        self.down = False
        self.put_bytes: list[int] = []
        self.requests: list[str] = []

    def _name(self, key: str) -> str:
        if self.down:
            raise StorageError("the store is down", transient=True)
        return f"{self.prefix}{key}"

    def get(self, key: str) -> bytes:
        self.requests.append(f"GET {key}")
        try:
            return self.objects[self._name(key)]
        except KeyError:
            raise ObjectNotFoundError(key) from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def open_stream(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def stream_bytes(self, stream: Any) -> int:
        return len(stream.getbuffer())

    def put(self, key: str, data: bytes | Path) -> None:
        content = data if isinstance(data, bytes) else data.read_bytes()
        self.objects[self._name(key)] = content
        self.put_bytes.append(len(content))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(self._name(key), data) is data

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        self.requests.append(f"LIST {prefix}")
        start = self._name(prefix)
        names = sorted(name for name in self.objects if name.startswith(start))
        return [ObjectInfo(name.removeprefix(self.prefix), len(self.objects[name])) for name in names]

    def size_bytes(self, key: str) -> int:
        return len(self.get(key))

    def delete(self, key: str) -> None:
        self.objects.pop(self._name(key), None)

    def child(self, prefix: str) -> Storage:
        return MemoryStorage(self.objects, f"{self.prefix}{prefix}/")


@pytest.fixture(params=["file", "object"])
def new_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Open the same storage anew at every call, as a restarted process would."""
    if request.param == "file":
        return lambda: open_storage(tmp_path / "runs")
    objects: dict[str, bytes] = {}
    return lambda: MemoryStorage(objects)


@pytest.fixture
def object_storage() -> MemoryStorage:
    """An object store that can be switched off (``down``) and knows its puts (``put_bytes``) and ``requests``."""
    return MemoryStorage()
