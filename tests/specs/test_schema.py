"""The schema and the reference say what the specs themselves accept."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.specs.schema import KINDS, reference, spec_schema

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
JOB: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())
MUTATIONS: list[tuple[str, Any]] = [
    ("epoch", 3),
    ("epochs", 0),
    ("epochs", "many"),
    ("epochs", None),
    ("name", "a/b"),
    ("name", 5),
    ("model", "yolov7"),
    ("model.nam", "yolov7"),
    ("model.depth", 100),
    ("model.activation", "relu"),
    ("data.train", ""),
    ("data.image_size", 16),
    ("data.image_size", 320.5),
    ("data.loader", "thread"),
    ("data.fetchers", 0),
    ("data.cache", {"max_bytes": "10GB"}),
    ("data.cache", {"path": "x", "max_bytes": "many"}),
    ("recipe", "p7"),
    ("hyperparameters.lr", 0.1),
    ("hyperparameters.lr0", 0),
    ("hyperparameters.mosaic", 2),
    ("hyperparameters.scale", 1.0),
    ("global_batch_size", 0),
    ("micro_batch_size", "most"),
    ("memory", "tiny"),
    ("stop", {"patience": 0}),
    ("stop", {"patience": 3, "metric": "loss"}),
    ("stop.max_hours", 0),
    ("precision", "int8"),
    ("strategy", "zero3"),
    ("seed", -1),
    ("freeze", "stem"),
    ("cluster.workers", 0),
    ("cluster.workers", [1, 2, 3]),
    ("cluster.labels", {"pool": 1}),
    ("cluster.placement", "pack"),
    ("evaluation.iou", 1.0),
    ("tracking.when_away", "wait"),
]


def mutated(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(JOB)
    *above, last = path.split(".")
    part = document
    for key in above:
        part = part.setdefault(key, {})
    part[last] = value
    return document


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_one_and_is_that_of_the_docs(kind: str) -> None:
    schema = spec_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    kept = ROOT / "docs" / "schema" / f"{kind}.json"
    assert json.loads(kept.read_text()) == schema, f"yolofleet schema {kind} > docs/schema/{kind}.json"


@pytest.mark.parametrize("path", [*JOBS, *SPACES], ids=lambda path: path.stem)
def test_all_jobs_and_spaces_fit_and_name_their_schema(path: Path) -> None:
    kind = "job" if path in JOBS else "search"
    assert path.read_text().startswith(f"# yaml-language-server: $schema=../docs/schema/{kind}.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), spec_schema(kind))


@pytest.mark.parametrize(("path", "value"), MUTATIONS, ids=str)
def test_the_schema_refuses_what_a_job_refuses(path: str, value: Any) -> None:
    document = mutated(path, value)
    with pytest.raises(UserError):
        JobSpec.parse(document, source="job.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, spec_schema("job"))


def test_the_reference_holds_every_key() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    for kind in KINDS:
        lines = list(reference(kind))
        assert "\n".join(lines) in page, f"yolofleet schema {kind} --markdown, into docs/reference.md"
        assert all(line.count(" |") == 4 and not re.search(r"\|\s+\|$", line) for line in lines[2:]), (
            "a key has no meaning"
        )
    keys = re.findall(r"^\| `([^`]+)` ", "\n".join(reference("job")), re.MULTILINE)
    assert {"name", "data.cache.max_bytes", "hyperparameters.lr0", "cluster.workers"} <= set(keys)


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="jobs: not a kind of spec; did you mean 'job'"):
        spec_schema("jobs")
