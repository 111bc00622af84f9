"""The TensorBoard mirror of a run: the rows of the run directory as TensorBoard's events, below ``tensorboard/``.

Each start writes one file anew from all rows, so steps that were done twice are there once, and a file that was cut off
costs nothing. In a folder the file grows while the run trains; in an object store, which has no append, it is put whole
and not more often than once a minute.
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
        url = f"{run.url.rstrip('/')}/{FOLDER}"
        cure = "the same command: its next start writes all of it anew"
        super().__init__(
            self.sync, source=run.url, tracking_uri=url, unaffected="training", target="TensorBoard", cure=cure
        )

    def _open(self) -> Any:
        """Remove what an earlier start wrote, and begin a file."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tracking.tensorboard: needs the package tensorboardX: pip install 'yolofleet[tensorboard]', or leave "
                "the key out"
            ) from error
        for entry in self._run.storage.list(f"{FOLDER}/"):
            self._run.storage.delete(entry.key)
        local = self._run.storage.local_path(f"{FOLDER}/events")
        if local is None:
            self._temporary = TemporaryDirectory(prefix="yolofleet-tensorboard-")
            return SummaryWriter(self._temporary.name)
        return SummaryWriter(str(local.parent))

    def sync(self, everything: bool = True) -> None:
        """Write the new rows.

        Args:
            everything: Look at every log, and upload the file in any case.
        """
        rows = self._rows.new_rows(only_due=not everything)
        for row in rows:
            for name, value in numbers(row):
                self._writer.add_scalar(grouped_name(name), value, int(row.get("step", 0)), walltime=seconds_of(row))
        if rows:
            self._writer.flush()
        if self._temporary is not None and (everything or time.monotonic() - self._put_at >= PUT_SECONDS):
            self._put_at = time.monotonic()
            for path in Path(self._temporary.name).iterdir():
                self._run.storage.put(f"{FOLDER}/{path.name}", path)

    def close(self, timeout_seconds: float = PUT_SECONDS) -> bool:
        """Write the last rows and end; returns whether all are there."""
        synchronised = super().close(timeout_seconds)
        self._writer.close()
        if self._temporary is not None:
            self._temporary.cleanup()
        return synchronised
