"""The detector as MLflow runs it: this module and its imports are copied into every registered version.

A server that fetches any URL in a request can be used to read the network behind it. So images by URL come only from
hosts that the operator has listed (none by default), redirections are not followed, and size and time are bounded.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import time
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact, redact_url
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.images import ImageReadError
from yolofleet.export.runtime import load_detector

HOSTS_VARIABLE = "YOLOFLEET_URL_HOSTS"
"""Hosts, separated by commas, each with its port if that is not the scheme's default."""
DEVICE_KEY = "device"
URL_HOSTS_KEY = "url_hosts"
DEFAULT_CONFIG: Mapping[str, str] = {DEVICE_KEY: "auto", URL_HOSTS_KEY: ""}
"""``auto`` takes a GPU where there is one; no URL is allowed. Change it with
``load_model(..., model_config={"device": "cpu"})``; the environment variable YOLOFLEET_URL_HOSTS overrides it."""
MOST_IMAGES = 256
"""In one request over HTTP."""
ERROR_KEY = "error"
SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""Set by MLflow's scoring server."""
SCHEMES = ("http://", "https://")
MOST_BYTES = 64 << 20
TIMEOUT_SECONDS = 10.0
BLOCK_BYTES = 1 << 16


def parse_hosts(text: str) -> frozenset[str]:
    """Return the hosts of a comma-separated list."""
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


def fetch_image(url: str, hosts: frozenset[str]) -> bytes:
    """Fetch an image by http or https from one of the allowed hosts.

    Raises:
        ImageReadError: The host is not allowed, it does not answer in time, or the answer is too large.
    """
    shown = redact_url(url)[:200]
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        raise ImageReadError(f"{shown!r} is not a URL") from None
    if not hosts:
        raise ImageReadError(f"images by URL are switched off; {HOSTS_VARIABLE} names the hosts that are allowed")
    if parts.username is not None or host not in hosts:
        raise ImageReadError(f"{shown!r}: images are fetched from {', '.join(sorted(hosts))} only")
    give_up = time.monotonic() + TIMEOUT_SECONDS
    opener = build_opener(_NoRedirection)
    data = bytearray()
    try:
        with opener.open(Request(url, headers={"User-Agent": "yolofleet"}), timeout=TIMEOUT_SECONDS) as answer:
            while block := answer.read1(BLOCK_BYTES):
                data += block
                if len(data) > MOST_BYTES:
                    raise ImageReadError(f"{shown!r} is larger than {MOST_BYTES:,} bytes")
                if time.monotonic() > give_up:
                    raise ImageReadError(f"{shown!r} took longer than {TIMEOUT_SECONDS:.0f} s")
    except HTTPError as error:
        raise ImageReadError(f"{shown!r}: the host answers {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ImageReadError(f"{shown!r} cannot be fetched: {type(error).__name__}") from error
    return bytes(data)


class _NoRedirection(HTTPRedirectHandler):
    """Makes a redirection an error: it may lead to a host that is not allowed."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirection."""


class RefusedRequest(MlflowException):  # type: ignore[misc]  # mlflow ships no types
    """A request that cannot be answered; the client gets status 400 and this message.

    MLflow's scoring server puts the whole request, megabytes of images, before the message of an MlflowException, and
    sends a stack trace for other errors. So this one does not let its message be changed.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The message that the client gets."""
        return self._message

    @message.setter
    def message(self, _: str) -> None:
        """Keep the first message."""


class ServedDetector:
    """A detector behind MLflow's ``predict``; thread-safe."""

    def __init__(self, detector: Detector, url_hosts: frozenset[str] = frozenset()) -> None:
        self._detector = detector
        self._url_hosts = url_hosts
        self._lock = threading.Lock()  # one prediction uses all cores; several at once would only hinder each other

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[list[dict[str, Any]]]:
        """Return the detections of each image.

        Args:
            model_input: One image, a list of images, an array (B, H, W, 3) or a table with one column. An image is
                the bytes of a file, base64 text of them, an array (H, W, 3) uint8 RGB, a URL of an allowed host, or
                a path (not over HTTP, where a path would let a client read the server's files).
            params: Not used; MLflow passes it.

        Returns:
            Per image, best first: category_id, category_name, bbox [x, y, width, height] in pixels, score. An image
            that cannot be read, among others that can, has one record with nothing but ``error``.

        Raises:
            ImageReadError: None of the images can be read.
            RefusedRequest: The same, over HTTP; or there is no image, or there are too many.
        """
        if os.environ.get(SERVING_VARIABLE, "").lower() not in ("true", "1"):
            return self._predict(list_images(model_input), over_http=False)
        try:
            images = list_images(model_input)
            if not 1 <= len(images) <= MOST_IMAGES:
                raise ImageReadError(f"a request holds 1 to {MOST_IMAGES} images, this one {len(images)}")
            return self._predict(images, over_http=True)
        except UserError as error:
            raise RefusedRequest(str(error)) from None

    def _predict(self, images: list[Any], *, over_http: bool) -> list[list[dict[str, Any]]]:
        contents: list[Any] = []
        problems: dict[int, ImageReadError] = {}
        for position, image in enumerate(images):
            try:
                contents.append(self._content(image, over_http=over_http))
            except ImageReadError as error:
                problems[position] = error
        with self._lock:
            answers = iter(self._detector.predict_each(contents))
        results = [problems.get(position) or next(answers) for position in range(len(images))]
        errors = [result for result in results if isinstance(result, ImageReadError)]
        if errors and len(errors) == len(results):
            raise errors[0]
        return [[{ERROR_KEY: str(result)}] if isinstance(result, ImageReadError) else result for result in results]

    def _content(self, image: Any, *, over_http: bool) -> Any:
        """Return an image with URLs fetched, and over HTTP with text decoded."""
        if isinstance(image, str) and image.startswith(SCHEMES):
            return fetch_image(image, self._url_hosts)
        return decode_content(image) if over_http else image


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedDetector:
    """Load the detector package at ``path``; MLflow calls this by its name."""
    config = {**DEFAULT_CONFIG, **(model_config or {})}
    wanted = str(config[DEVICE_KEY])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    hosts = parse_hosts(os.environ.get(HOSTS_VARIABLE, str(config[URL_HOSTS_KEY])))
    return ServedDetector(load_detector(Path(path), device), hosts)


def list_images(model_input: Any) -> list[Any]:
    """Return the images of MLflow's input as a list.

    Raises:
        ImageReadError: A table has several columns, or the input has a type that holds no images.
    """
    columns = getattr(model_input, "columns", None)
    if columns is not None:  # a pandas table
        if len(columns) != 1:
            raise ImageReadError(f"a table of images has one column, this one has {len(columns)}: {list(columns)[:5]}")
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, np.ndarray):
        is_image = model_input.ndim in (2, 3) and model_input.dtype == np.uint8
        return [model_input] if is_image else list(np.atleast_1d(model_input))
    if isinstance(model_input, str | bytes | bytearray | Path):
        return [model_input]
    if not isinstance(model_input, Iterable):
        raise ImageReadError(f"images come as a list, not as {type(model_input).__name__}")
    return list(model_input)


def decode_content(image: Any) -> Any:
    """Return the image with text decoded from base64, so that no text is ever taken for a path.

    Raises:
        ImageReadError: The text is not base64.
    """
    if not isinstance(image, str):
        return image
    header, comma, body = image.rpartition(",")
    if comma and not (header.startswith("data:") and header.endswith(";base64")):
        raise ImageReadError(
            f"an image is sent as base64 text or as a data URL of it, not {redact(image[:2000])[:60]!r}"
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageReadError(
            f"an image is sent as base64 text; {redact(image[:2000])[:60]!r} is not ({error})"
        ) from error
