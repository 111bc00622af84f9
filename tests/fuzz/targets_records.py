"""Targets: what other processes left behind: rows of a search, tags of a registered model, parts of predictions."""

from __future__ import annotations

import contextlib
import json
import tempfile
from typing import Any

from yolofleet.cluster.prediction_parts import PredictionPlan, merge_parts, missing_parts, part_key
from yolofleet.core.errors import UserError
from yolofleet.registry.alias_history import alias_changes, rollback_target
from yolofleet.registry.promotion_lock import read_requests
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.report import render_search
from yolofleet.search.results import load_results, summary_lines
from yolofleet.storage import open_storage

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-records-")
SEARCH: dict[str, Any] = {
    "name": "s",
    "job": {"name": "a", "model": {"name": "yolov7-tiny"}, "data": {"train": "t", "val": "v"}},
    "budget": {"trials": 2},
    "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
}
PLAN = PredictionPlan(
    weights_sha256="a", data_digest="b", num_images=1, part_size=1, confidence=0.1, iou=0.5, max_detections=50,
    image_size=64,
)  # fmt: skip
HISTORY, INTENT = "yolofleet.history.champion.000001", "yolofleet.intent.champion.q"


def fuzz_search_rows(data: bytes) -> None:
    """The record of a search, and the page that is made of it."""
    storage = open_storage(f"{FOLDER.name}/search")
    storage.put("search.yaml", json.dumps(SEARCH).encode())
    storage.put("trials.jsonl", data + b"\n")
    with contextlib.suppress(UserError):
        results = load_results(SearchDirectory(storage))
        "\n".join(summary_lines(results, "s")).encode(errors="surrogatepass")
        json.dumps(results.document(), allow_nan=False)
        render_search(results, {})


def fuzz_alias_tags(data: bytes) -> None:
    """Tags of a registered model: an entry of an alias's history, and a request for its lock."""
    text = data.decode(errors="replace")
    tags = {HISTORY: text, INTENT: text}
    alias_changes(tags, {"champion": 2}, "champion")
    for request in read_requests(tags, "champion"):
        request.process.has_ended()
        request.to_tag()
    with contextlib.suppress(UserError):
        rollback_target(tags, {"champion": 2, "champion-previous": 1}, "champion")


def fuzz_prediction_part(data: bytes) -> None:
    """A part of predictions, and their plan."""
    storage = open_storage(f"{FOLDER.name}/parts")
    storage.put(part_key(0), data)
    if missing_parts(storage, PLAN) == []:
        merge_parts(storage, PLAN, [(1, "cat")])
        assert json.loads(storage.get("detections.json"))["categories"] == [{"id": 1, "name": "cat"}]
    other = open_storage(f"{FOLDER.name}/plan")
    other.put("plan.json", data)
    with contextlib.suppress(UserError):
        missing_parts(other, PLAN)
