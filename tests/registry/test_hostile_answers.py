"""A server that is no registry, or a hostile one: whatever it answers is one error, and no answer is endless."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from yolofleet.core.errors import UserError
from yolofleet.registry import versions
from yolofleet.registry.versions import ModelTags, list_versions

MODELS = {"registered_models": [{"name": "shapes", "aliases": [{"alias": "champion", "version": "1"}]}]}
ANSWERS: dict[str, str] = {}
"""What the server answers, by the last part of the path."""


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = ANSWERS.get(self.path.partition("?")[0].rpartition("/")[2], "{}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(versions, "MOST_PAGES", 3)
    ANSWERS.clear()
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("search", "[" * 100_000),
        ("search", "[]"),
        ("search", json.dumps({"registered_models": 5})),
        ("search", json.dumps({"registered_models": [5]})),
        ("search", json.dumps(MODELS | {"next_page_token": "more"})),
        ("search", json.dumps(MODELS | {"model_versions": [{"name": "shapes", "version": "x"}]})),
    ],
)
@pytest.mark.parametrize("ask", [list_versions, lambda uri: list_versions(uri, "shapes")])
def test_what_no_registry_answers_is_one_error(path: str, answer: str, ask: Callable[[str], object], uri: str) -> None:
    ANSWERS[path] = answer
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:\d+"):
        ask(uri)


@pytest.mark.parametrize("answer", ["[" * 100_000, "[]", json.dumps({"registered_model": 5})])
def test_tags_that_no_registry_answers_are_one_error(answer: str, uri: str) -> None:
    ANSWERS["get"] = answer
    with pytest.raises(UserError, match="MLflow at http"):
        ModelTags(uri, "shapes").read()
