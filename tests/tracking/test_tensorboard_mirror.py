"""TensorBoard's events are the rows of the run directory, each once, however often the run was started."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracking.conftest import MemoryStorage
from yolofleet.storage import Storage, open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.tensorboard_mirror import TensorBoardMirror

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def scalars(data: bytes) -> Iterator[tuple[str, int, float]]:
    """Yield the scalars of an event file: records of a length, its checksum, an event, its checksum."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event: Any = event_pb2.Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        position += 12 + length + 4
        yield from ((value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value)


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_every_row_is_there_once(kind: str, tmp_path: Path) -> None:
    storage: Storage = open_storage(tmp_path) if kind == "folder" else MemoryStorage()
    run = RunDirectory(storage)
    run.append_metrics({"step": 1, "loss": 0.5, "phase": "text"})
    run.append_metrics({"step": 1, "val_AP": 0.25, "val_AP75": None})
    run.flush()
    mirror = TensorBoardMirror(run)
    mirror.sync()
    run.append_metrics({"step": 2, "loss": 0.25})
    run.flush()
    mirror.sync()
    run.append_metrics({"step": 3, "loss": 0.75})
    run.flush()
    mirror.sync()
    run.truncate_metrics_after(1)  # the workers start again from the checkpoint of step 1
    run.append_metrics({"step": 2, "loss": 0.25})
    run.flush()
    assert mirror.close()
    for _ in range(2):  # another start writes the same anew
        (entry,) = storage.list("tensorboard/")
        assert list(scalars(storage.get(entry.key))) == [
            ("loss/total", 1, 0.5),
            ("val/AP", 1, 0.25),
            ("loss/total", 2, 0.25),
        ]
        assert TensorBoardMirror(RunDirectory(storage)).close()
