"""Images and models of a run in MLflow: what each evaluation left, and the kept checkpoints with their figures.

A checkpoint becomes a model when the run has ended: four requests for each, and only for those that are kept.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.mirrored_view import grouped_name, unix_milliseconds
from yolofleet.tracking.run_directory import EVALUATION_IMAGES, RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHECKPOINT_TYPE = "checkpoint"


class SentImages:
    """The images of evaluations that MLflow has of a run.

    Args:
        client: MLflow.
        run_id: The MLflow run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._sent: set[tuple[str, int]] | None = None

    def send(self, run: RunDirectory, keys: Sequence[str]) -> None:
        """Send what MLflow lacks of the images among these keys of the run directory."""
        if self._sent is None:  # what an earlier pass, or an earlier process, has sent
            names = [entry.path for entry in self._client.list_artifacts(self._run_id, "images")]
            found = (re.search(r"([^/+%]+)[+%]step[+%](\d+)[+%]", name) for name in names)
            self._sent = {(match[1], int(match[2])) for match in found if match}
        from PIL import Image

        for key, name, step in _images(keys):
            if (name, step) not in self._sent:
                with Image.open(io.BytesIO(run.storage.get(key))) as image:
                    self._client.log_image(self._run_id, image.convert("RGB"), key=name, step=step)
                self._sent.add((name, step))


def _images(keys: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield key, name in MLflow and step of the images of all evaluations."""
    for key in keys:
        if (match := re.fullmatch(rf"{EVALUATION_IMAGES}/step-(\d+)/(\d+)\.jpg", key)) is not None:
            yield key, f"image-{match[2]}", int(match[1])


def send_checkpoints(client: MlflowClient, found: Run, run: RunDirectory, rows: Sequence[Row]) -> None:
    """Make a model of each kept checkpoint that was evaluated, with its figures, where there is none yet."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    marks = (re.fullmatch(r"checkpoints/step-(\d+)/COMMITTED", entry.key) for entry in run.storage.list("checkpoints/"))
    kept = {int(match[1]) for match in marks if match}
    evaluated = {int(row["step"]): row for row in rows if "val_AP" in row and int(row["step"]) in kept}
    if not evaluated:
        return
    experiment, run_id = found.info.experiment_id, found.info.run_id
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    missing = evaluated.keys() - {int(model.tags["step"]) for model in known if "step" in model.tags}
    for step in sorted(missing):
        tags = {"step": str(step), "checkpoint": f"{run.url}/checkpoints/step-{step}"}
        model = client.create_logged_model(
            experiment, name=f"step-{step}", source_run_id=run_id, tags=tags, model_type=CHECKPOINT_TYPE
        )
        figures = [(grouped_name(key), value) for key, value in evaluated[step].items() if key.startswith("val_")]
        at = unix_milliseconds(str(evaluated[step].get("time", "")))  # as the run's own: MLflow keeps equal rows once
        metrics = [
            Metric(key, float(value), at, step, model_id=model.model_id)
            for key, value in figures
            if isinstance(value, int | float)
        ]
        client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
