"""The detector as MLflow runs it: this module and what it imports travel inside every registered version."""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from yolofleet.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.pictures import PictureError
from yolofleet.export.runtime import load_detector
from yolofleet.registry.picture_urls import HOSTS_VARIABLE, SCHEMES, fetch_picture, named_hosts

DEVICE_KEY = "device"
URL_HOSTS_KEY = "url_hosts"
DEFAULT_CONFIG: Mapping[str, str] = {DEVICE_KEY: "auto", URL_HOSTS_KEY: ""}
"""``auto`` takes a GPU where there is one; no host may be asked for pictures. Change it with
``load_model(..., model_config={"device": "cpu"})``; the environment variable YOLOFLEET_URL_HOSTS goes before."""
MOST_PICTURES = 256
"""In one request over HTTP."""
ERROR_KEY = "error"
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
    """A detector behind MLflow's ``predict``; safe among the threads of a server."""

    def __init__(self, detector: Detector, url_hosts: frozenset[str] = frozenset()) -> None:
        """Serve a detector.

        Args:
            detector: What predicts.
            url_hosts: Hosts that may be asked for pictures.
        """
        self._detector = detector
        self._url_hosts = url_hosts
        self._turn = threading.Lock()  # one prediction uses all cores; several at once would only hinder each other

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[list[dict[str, Any]]]:
        """Return what is in each picture.

        Args:
            model_input: One picture, a list of pictures, an array (B, H, W, 3) or a table with one column. A picture is
                the bytes of a file, base64 text of them, an array (H, W, 3) uint8 RGB, a URL of a host that is
                allowed, or a path (not over HTTP, where a path would let a stranger look at the server's files).
            params: Not used; MLflow hands it over.

        Returns:
            Per picture, best first: category_id, category_name, bbox [x, y, width, height] in pixels, score. A picture
            that cannot be read among others that can has one record in its place that holds only ``error``.

        Raises:
            PictureError: None of the pictures can be read.
            RefusedRequest: The same, over HTTP; or there is no picture, or there are too many.
        """
        if os.environ.get(SERVING_VARIABLE, "").lower() not in ("true", "1"):
            return self._found(listed(model_input), over_http=False)
        try:
            pictures = listed(model_input)
            if not 1 <= len(pictures) <= MOST_PICTURES:
                raise PictureError(f"a request holds 1 to {MOST_PICTURES} pictures, this one {len(pictures)}")
            return self._found(pictures, over_http=True)
        except UserError as error:
            raise RefusedRequest(str(error)) from None

    def _found(self, pictures: list[Any], *, over_http: bool) -> list[list[dict[str, Any]]]:
        contents: list[Any] = []
        problems: dict[int, PictureError] = {}
        for place, picture in enumerate(pictures):
            try:
                contents.append(self._content(picture, over_http=over_http))
            except PictureError as error:
                problems[place] = error
        with self._turn:
            answers = iter(self._detector.predict_each(contents))
        found = [problems.get(place) or next(answers) for place in range(len(pictures))]
        errors = [answer for answer in found if isinstance(answer, PictureError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        return [[{ERROR_KEY: str(answer)}] if isinstance(answer, PictureError) else answer for answer in found]

    def _content(self, picture: Any, *, over_http: bool) -> Any:
        """Return a picture with URLs fetched, and over HTTP with text decoded."""
        if isinstance(picture, str) and picture.startswith(SCHEMES):
            return fetch_picture(picture, self._url_hosts)
        return content_only(picture) if over_http else picture


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedDetector:
    """Load the detector package at ``path``; MLflow calls this by its name."""
    config = {**DEFAULT_CONFIG, **(model_config or {})}
    wanted = str(config[DEVICE_KEY])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    hosts = named_hosts(os.environ.get(HOSTS_VARIABLE, str(config[URL_HOSTS_KEY])))
    return ServedDetector(load_detector(Path(path), device), hosts)


def listed(model_input: Any) -> list[Any]:
    """Return the pictures of MLflow's input, whatever it came in, as a list.

    Raises:
        PictureError: A table has several columns, or it is nothing that holds pictures.
    """
    columns = getattr(model_input, "columns", None)
    if columns is not None:  # a pandas table
        if len(columns) != 1:
            raise PictureError(f"a table of pictures has one column, this one has {len(columns)}: {list(columns)[:5]}")
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, np.ndarray):
        is_picture = model_input.ndim in (2, 3) and model_input.dtype == np.uint8
        return [model_input] if is_picture else list(np.atleast_1d(model_input))
    if isinstance(model_input, str | bytes | bytearray | Path):
        return [model_input]
    if not isinstance(model_input, Iterable):
        raise PictureError(f"pictures come as a list, not as {type(model_input).__name__}")
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
