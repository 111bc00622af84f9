"""The detector as MLflow runs it: this module and what it imports travel inside every registered version."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from yolofleet.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.pictures import PictureError

DEVICE_KEY = "device"
DEFAULT_CONFIG: Mapping[str, str] = {DEVICE_KEY: "auto"}
"""``auto`` takes a GPU where there is one; change it with ``load_model(..., model_config={"device": "cpu"})``."""
SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""Set by MLflow's scoring server."""


class RefusedRequest(MlflowException):  # type: ignore[misc]  # mlflow ships no types
    """A request that cannot be answered; the client gets status 400 and this message.

    MLflow's scoring server puts the whole request before the message of an error, megabytes of pictures; and for errors
    of another type it sends a stack trace. This one keeps its message.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """What the client is told."""
        return self._message

    @message.setter
    def message(self, _: str) -> None:
        """Keep the message that the request was refused with."""


class ServedDetector:
    """A detector behind MLflow's ``predict``."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[list[dict[str, Any]]]:
        """Return what is in each picture.

        Args:
            model_input: One picture, a list of pictures, an array (B, H, W, 3) or a table with one column. A picture is
                the bytes of a file, base64 text of them, an array (H, W, 3) uint8 RGB, or a path (not over HTTP,
                where a path would let a stranger look at the server's files).
            params: Not used; MLflow hands it over.

        Returns:
            Per picture, best first: category_id, category_name, bbox [x, y, width, height] in pixels, score.

        Raises:
            PictureError: A picture cannot be read.
            RefusedRequest: The same, over HTTP.
        """
        if os.environ.get(SERVING_VARIABLE, "").lower() not in ("true", "1"):
            return self._detector.predict(listed(model_input))
        try:
            return self._detector.predict([content_only(picture) for picture in listed(model_input)])
        except UserError as error:
            raise RefusedRequest(str(error)) from None


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedDetector:
    """Load the detector package at ``path``; MLflow calls this by its name."""
    wanted = str({**DEFAULT_CONFIG, **(model_config or {})}[DEVICE_KEY])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    return ServedDetector(Detector.load(Path(path), device))


def listed(model_input: Any) -> list[Any]:
    """Return the pictures of MLflow's input, whatever it came in, as a list.

    Raises:
        PictureError: A table has several columns.
    """
    columns = getattr(model_input, "columns", None)
    if columns is not None:  # a pandas table
        if len(columns) != 1:
            raise PictureError(f"a table of pictures has one column, this one has {len(columns)}: {list(columns)[:5]}")
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, np.ndarray):
        is_picture = model_input.ndim in (2, 3) and model_input.dtype == np.uint8
        return [model_input] if is_picture else list(model_input)
    if isinstance(model_input, str | bytes | bytearray | Path):
        return [model_input]
    return list(model_input)


def content_only(picture: Any) -> Any:
    """Return the picture with text decoded from base64, so that no text is ever taken for a path.

    Raises:
        PictureError: The text is not base64.
    """
    if not isinstance(picture, str):
        return picture
    header, comma, body = picture.rpartition(",")
    if comma and not (header.startswith("data:") and header.endswith(";base64")):
        raise PictureError(f"a picture is sent as base64 text or as a data URL of it, not {picture[:60]!r}")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"a picture is sent as base64 text; {picture[:60]!r} is not ({error})") from error
