"""What the served detector answers to good, bad and hostile requests."""

from __future__ import annotations

import base64
import io
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.images import ImageReadError
from yolofleet.registry.served_detector import (
    MOST_BYTES,
    MOST_IMAGES,
    SERVING_VARIABLE,
    RefusedRequest,
    ServedDetector,
    fetch_image,
    parse_hosts,
)


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png(side: int = 30_000) -> bytes:
    """A few bytes that claim to be an enormous image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BAD = {
    "a huge image": (text_of(huge_png()), "30000x30000"),
    "a text file": (text_of(b"what is the answer, then?\n" * 20), "image"),
    "half an image": (text_of(b"\x89PNG\r\n\x1a\n"), "image"),
    "no base64": ("not base64!", "base64"),
    "nothing": ("", "empty"),
    "a number": (7, "int"),
    "null": (None, "NoneType"),
    "a list": ([1, 2], "list"),
    "a path": ("/etc/passwd", "base64"),
    "a URL": ("http://localhost/a.png", "switched off"),
}


@pytest.fixture
def served(detector_package: Path, monkeypatch: pytest.MonkeyPatch) -> ServedDetector:
    monkeypatch.setenv(SERVING_VARIABLE, "true")
    return ServedDetector(Detector.load(detector_package))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_has_an_error_at_its_position(name: str, served: ServedDetector, images: list[Any]) -> None:
    bad, message = BAD[name]
    good = [text_of(png(image)) for image in images]
    expected = served.predict(good)
    assert all(expected)
    found = served.predict([good[0], bad, good[1], good[2], bad])
    assert [found[0], *found[2:4]] == expected
    for position in (1, 4):
        assert [*found[position][0]] == ["error"] and message in found[position][0]["error"], found[position]
        assert len(found[position][0]["error"]) < 400
    with pytest.raises(RefusedRequest, match=message):
        served.predict([bad])
    assert served.predict(good) == expected, "alive after it"


def test_outside_a_server_too(detector_package: Path, images: list[Any]) -> None:
    detector = ServedDetector(Detector.load(detector_package))
    found = detector.predict([images[0], huge_png(), images[1]])
    assert "30000x30000" in found[1][0]["error"] and [found[0], found[2]] == detector.predict(images[:2])
    with pytest.raises(ImageReadError, match="no such file"):
        detector.predict(["nowhere.png"])


@pytest.mark.parametrize(
    "request_body",
    [
        7,
        None,
        True,
        math.nan,
        {"a": 1},
        {},
        np.array(7),
        np.full((2, 3), np.nan),
        np.zeros((2, 4, 4, 3)),
        [[["x"]]],
        ["=" * 10**7],
    ],
    ids=["number", "null", "bool", "nan", "object", "empty object", "0-d", "nans", "floats", "nested", "long text"],
)
def test_what_holds_no_images_is_refused(request_body: Any, served: ServedDetector, images: list[Any]) -> None:
    with pytest.raises(RefusedRequest) as refusal:
        served.predict(request_body)
    assert refusal.value.get_http_status_code() == 400
    assert "image" in refusal.value.message and len(refusal.value.message) < 400
    assert served.predict([text_of(png(images[0]))])[0], "alive after it"


@pytest.mark.parametrize("count", [0, MOST_IMAGES + 1])
def test_a_request_holds_some_images_but_not_any_number(count: int, served: ServedDetector) -> None:
    with pytest.raises(RefusedRequest, match=f"1 to {MOST_IMAGES} images, this one {count}") as refusal:
        served.predict([text_of(huge_png())] * count)
    assert refusal.value.get_http_status_code() == 400


class Host(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path not in ("/a.png", "/endless.png"):
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)
        if self.path == "/endless.png":
            try:
                for _ in range(2 * MOST_BYTES >> 20):
                    self.wfile.write(bytes(1 << 20))
            except OSError:  # the other side has seen enough
                return

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host(images: list[Any]) -> Iterator[str]:
    Host.content = png(images[0])
    server = HTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_by_url_from_a_named_host(
    host: str, detector_package: Path, images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVING_VARIABLE, "true")
    detector = Detector.load(detector_package)
    served = ServedDetector(detector, parse_hosts(f" {host}, other.example "))
    assert served.predict([f"http://{host}/a.png"]) == detector.predict(images[:1])
    with pytest.raises(RefusedRequest, match="switched off"):
        ServedDetector(detector).predict([f"http://{host}/a.png"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://{host}/moved.png", "answers 302"),
        ("http://{host}/missing.png", "answers 404"),
        ("http://{host}/endless.png", "larger than"),
        ("http://localhost/a.png", "only"),
        ("http://{host}.evil.example/a.png", "not a URL"),
        ("http://user@{host}/a.png", "only"),
        ("http://{host}@evil.example/a.png", "only"),
        ("http://[::1/a.png", "not a URL"),
    ],
)
def test_other_urls_are_refused(url: str, message: str, host: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        fetch_image(url.format(host=host), parse_hosts(host))
