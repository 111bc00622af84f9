"""What a run directory knows of its model beside the package: judgement, detections, manifests, facts.

report/judgement.json        what the released weights are worth, and on which data
report/detections.json       every box, as a COCO result file
report/index.html            the evaluation report, one page with its pictures inside
lineage/train.json, val.json the manifests of the data, as they were when the model was released
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yolofleet.evaluation.detections import Detections
from yolofleet.registry.judgement import Judged, Judgement
from yolofleet.registry.proof import LINEAGE_FOLDER
from yolofleet.specs.document import parse_yaml
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset

JUDGEMENT_KEY = "report/judgement.json"
DETECTIONS_KEY = "report/detections.json"
PAGE_KEY = "report/index.html"


def keep_background(run: RunDirectory, judged: Judged, *, train: ShardDataset, val: ShardDataset) -> None:
    """Keep in the run directory what a later registration needs, whatever becomes of the data."""
    for part, dataset in (("train", train), ("val", val)):
        run.storage.put(_manifest_key(part), dataset.manifest.to_bytes())
    run.record_facts(data_url={"train": train.storage.url, "val": val.storage.url})
    run.storage.put(DETECTIONS_KEY, json.dumps(judged.detections.records()).encode())
    run.storage.put(JUDGEMENT_KEY, json.dumps(judged.judgement.model_dump(mode="json"), indent=1).encode() + b"\n")


@dataclass(frozen=True)
class RunBackground:
    """What a run knows of its model.

    Attributes:
        evidence: Its facts, where it lies, and its job.
        judged: What the model is worth; None where the run was released without a judgement.
        manifests: The manifests of its data, by ``train`` and ``val``.
        report: The page of its evaluation report, where there is one.
    """

    evidence: dict[str, Any]
    judged: Judged | None
    manifests: dict[str, bytes]
    report: bytes | None


def run_background(run: RunDirectory) -> RunBackground:
    """Return what a run directory knows of its model.

    Raises:
        UserError: A file of it is damaged.
    """
    job_text = run.job_text() or ""
    evidence = {
        **run.facts(),
        "run_directory": run.url,
        "job_sha256": hashlib.sha256(job_text.encode()).hexdigest(),
        "job": parse_yaml(job_text, source=f"{run.url}/job.yaml"),
    }
    found = {part: _read(run, _manifest_key(part)) for part in ("train", "val")}
    return RunBackground(
        evidence=evidence,
        judged=_judged(run),
        manifests={part: manifest for part, manifest in found.items() if manifest is not None},
        report=_read(run, PAGE_KEY),
    )


def _judged(run: RunDirectory) -> Judged | None:
    judgement, detections = _read(run, JUDGEMENT_KEY), _read(run, DETECTIONS_KEY)
    if judgement is None or detections is None:
        return None
    records: list[dict[str, Any]] = json.loads(detections)
    return Judged(
        Judgement.parse(json.loads(judgement), source=f"{run.url}/{JUDGEMENT_KEY}"),
        Detections.from_records(records, source=f"{run.url}/{DETECTIONS_KEY}"),
    )


def _manifest_key(part: str) -> str:
    return f"{LINEAGE_FOLDER}/{part}.json"


def _read(run: RunDirectory, key: str) -> bytes | None:
    try:
        return run.storage.get(key)
    except ObjectNotFoundError:
        return None
