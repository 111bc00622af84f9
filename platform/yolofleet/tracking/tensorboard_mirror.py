"""The TensorBoard mirror of a run: the rows of the run directory as TensorBoard's events, below ``tensorboard/``.

Each start of the command, and each of the workers that goes back to a checkpoint, writes one file anew from all rows:
so steps that were done twice are there once, and a file that was cut off costs nothing. In a folder the file grows
while the run trains; in an object store, which has no append, it is put whole and not more often than once a minute.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yolofleet.core.background import BackgroundSync
from yolofleet.core.errors import UserError
from yolofleet.tracking.json_lines import seconds_of
from yolofleet.tracking.mirrored_run import grouped_name, numbers
from yolofleet.tracking.run_directory import METRICS_LOGS, RunDirectory

FOLDER = "tensorboard"
PUT_SECONDS = 60.0
"""Shortest time between two uploads of the file."""


class TensorBoardMirror(BackgroundSync):
    """Keeps the events of a run directory synchronised with its rows, in the background.

    Args:
        run: The run directory.

    Raises:
        UserError: The package that writes the events is not installed.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._rows = run.reader(*METRICS_LOGS)
        self._temporary: TemporaryDirectory[str] | None = None
        self._writer = self._open()
        self._put_at = 0.0
        self._has_news = False
        url = f"{run.url.rstrip('/')}/{FOLDER}"
        cure = "the same command: its next start writes all of it anew"
        super().__init__(
            self.sync, source=run.url, tracking_uri=url, unaffected="training", target="TensorBoard", cure=cure
        )

    def _open(self) -> Any:
        """Remove what an earlier start wrote, and begin a file."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError as error:
            raise UserError(
                "tracking.tensorboard: needs the package tensorboardX: pip install 'yolofleet[tensorboard]', or leave "
                "the key out"
            ) from error
        for entry in self._run.storage.list(f"{FOLDER}/"):
            self._run.storage.delete(entry.key)
        local = self._run.storage.local_path(f"{FOLDER}/events")
        if local is not None:
            folder = local.parent
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._temporary = TemporaryDirectory(prefix="yolofleet-tensorboard-")
            folder = Path(self._temporary.name)
        return EventsWriter(str(folder / "events"))

    def sync(self, everything: bool = True) -> None:
        """Write the new rows.

        Args:
            everything: Look at every log, and upload the file in any case.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        rows = self._rows.new_rows(only_due=not everything)
        if self._rows.num_truncations:  # workers went back to a checkpoint: TensorBoard can take no row back
            self._writer.close()
            self._writer, self._rows = self._open(), self._run.reader(*METRICS_LOGS)
            rows = self._rows.new_rows()
        for row in rows:
            values = [Summary.Value(tag=grouped_name(name), simple_value=value) for name, value in numbers(row)]
            event = Event(wall_time=seconds_of(row), step=int(row.get("step", 0)), summary=Summary(value=values))
            self._writer.write_event(event)
        if rows:
            self._writer.flush()
            self._has_news = True
        is_due = everything or (self._has_news and time.monotonic() - self._put_at >= PUT_SECONDS)
        if self._temporary is not None and is_due:
            self._put_at, self._has_news = time.monotonic(), False
            for path in Path(self._temporary.name).iterdir():
                self._run.storage.put(f"{FOLDER}/{path.name}", path)

    def close(self, timeout_seconds: float = PUT_SECONDS) -> bool:
        """Write the last rows and end; returns whether all are there."""
        synchronised = super().close(timeout_seconds)
        self._writer.close()
        if self._temporary is not None:
            self._temporary.cleanup()
        return synchronised
