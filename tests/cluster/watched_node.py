"""A Ray of one node, what the driver's watch asks of a group of two workers on it, and why; written as JSON."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray

from metadata_service import metadata_service, notice
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.supervision.heartbeats import HeartbeatBoard, WorkerStatus
from yolofleet.training.supervision.nodes import alive_offers, draining_nodes, free_offers, growth_offers, num_slots
from yolofleet.training.supervision.watches import GroupWatch

SPOT_NOTICE = Path(__file__).parents[2] / "infra" / "aws" / "spot_notice.py"
JOB: dict[str, Any] = {
    "name": "x",
    "model": {"name": "yolov7-tiny"},
    "data": {"train": "a", "val": "b"},
    "cluster": {"workers": [1, 3], "resize_interval_seconds": 1.0, "hang_timeout_seconds": 60.0},
}


def asked_of(board: Any, member: WorkerStatus, folder: Path, patience_seconds: float = 60.0) -> str | None:
    """Return what the watch asks of a group whose only worker that reports is ``member``."""
    ray.get(board.begin.remote(member.group))
    end = time.monotonic() + patience_seconds
    with GroupWatch(JobSpec.parse(JOB, source="job"), RunDirectory(open_storage(folder)), board, lambda: None) as watch:
        while watch.leave_reason is None and time.monotonic() < end:
            ray.get(board.report.remote(member))
            time.sleep(0.2)
    return watch.leave_reason


def main(out: Path) -> None:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, labels={"pool": "a"})
    node = ray.get_runtime_context().get_node_id()
    found: dict[str, Any] = {
        "places": num_slots(ClusterSpec(labels={"pool": "a"}), alive_offers()),
        "places_elsewhere": num_slots(ClusterSpec(labels={"pool": "b"}), alive_offers()),
        "growth": len(growth_offers()),
    }
    group = ray.util.placement_group([{"CPU": 2}])
    ray.get(group.ready())
    end = time.monotonic() + 30
    while num_slots(ClusterSpec(), free_offers()) != 1 and time.monotonic() < end:
        time.sleep(0.1)
    found["free_beside_two"] = num_slots(ClusterSpec(), free_offers())
    board = ray.remote(num_cpus=0)(HeartbeatBoard).remote()
    member = WorkerStatus(group="g", rank=0, num_workers=2, process=os.getpid(), node=node, host="h", step=5)
    found["with_room"] = asked_of(board, member, out.parent)
    with metadata_service([(404, ""), (200, notice(600))]) as (url, _):
        address = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        command = [sys.executable, str(SPOT_NOTICE), "--node-id", node]
        subprocess.run(command, env=os.environ | address | {"TMPDIR": str(out.parent)}, check=True, timeout=120)
    end = time.monotonic() + 30
    while not draining_nodes() and time.monotonic() < end:
        time.sleep(0.1)
    found["places_while_draining"] = num_slots(ClusterSpec(), alive_offers())
    found["announced_to_go"] = asked_of(board, member, out.parent)
    ray.shutdown()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
