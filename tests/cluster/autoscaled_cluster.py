"""Ray's own autoscaler on this machine, from no node to what an elastic job may have; what was seen, as JSON."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.autoscaler.sdk import request_resources

from cluster.watched_node import JOB
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.supervision.heartbeats import HeartbeatBoard, WorkerStatus
from yolofleet.training.supervision.launch import wait_for_nodes
from yolofleet.training.supervision.nodes import alive_offers, growth_offers, has_room
from yolofleet.training.supervision.watches import GroupWatch

GROUPS = {
    "on-demand": {"resources": {"CPU": 2}, "labels": {"capacity": "on-demand"}, "min_workers": 0, "max_workers": 1},
    "spot": {"resources": {"CPU": 2}, "labels": {"capacity": "spot"}, "min_workers": 0, "max_workers": 2},
}
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""What Ray's provider of made-up nodes calls the head."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}  # fmt: skip


def start_head(folder: Path, temporary: str) -> str:
    """Start a head without CPUs and with the autoscaler; returns its address."""
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    head: dict[str, Any] = {"resources": {"CPU": 0}, "max_workers": 0}
    config = {
        "cluster_name": "made-up", "max_workers": 3, "idle_timeout_minutes": 5.0, "upscaling_speed": 1.0,
        "provider": {"type": "external", "module": PROVIDER, "launch_multiple": True, "head_node_id": HEAD_ID,
                     "gcs_address": address, "disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": {"ray.head.default": head, **GROUPS}, "head_node_type": "ray.head.default",
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }  # fmt: skip
    for kind in config["available_node_types"].values():
        kind["node_config"] = {}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=0"]
    command += [f"--port={address.rpartition(':')[2]}"]
    command += [
        "--include-dashboard=false",
        "--object-store-memory=80000000",
        f"--temp-dir={temporary}",
        f"--autoscaling-config={path}",
    ]
    environment = os.environ | HEAD_ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return address


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def capacities() -> list[str]:
    return sorted(offer.labels["capacity"] for offer in alive_offers() if offer.labels and "capacity" in offer.labels)


def main(out: Path) -> None:
    os.environ["YOLOFLEET_NODE_GROUPS"] = json.dumps(GROUPS)
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        ray.init(address=start_head(out.parent, temporary), log_to_driver=False)
        found: dict[str, Any] = {"before": capacities()}
        cluster = {"workers": [1, 4], "first_worker_labels": {"capacity": "on-demand"}, "resize_interval_seconds": 2.0}
        job = JobSpec.parse(JOB | {"cluster": cluster}, source="job")
        run = RunDirectory(open_storage(out.parent), source="driver")
        found["has_room"] = has_room(job.cluster, alive_offers(), growth_offers())
        wait_for_nodes(
            job, run, alive_offers,
            lambda bundles, labels: request_resources(bundles=bundles, bundle_label_selectors=labels), lambda: None,
        )  # fmt: skip
        found["waited_for"] = capacities()
        held = ray.util.placement_group([{"CPU": 2}], bundle_label_selector=[{"capacity": "on-demand"}])
        ray.get(held.ready())  # the group's own room
        board = ray.remote(num_cpus=0)(HeartbeatBoard).remote()
        node = next(node["NodeID"] for node in ray.nodes() if node["Labels"].get("capacity"))
        member = WorkerStatus(group="g", rank=0, num_workers=2, process=os.getpid(), node=node, host="h", step=5)
        ray.get(board.begin.remote(member.group))
        end = time.monotonic() + 120
        with GroupWatch(job, run, board, lambda: None) as watch:
            while watch.leave_reason is None and time.monotonic() < end:
                ray.get(board.report.remote(member))
                time.sleep(0.2)
        found["asked"], found["grown_to"] = watch.leave_reason, capacities()
        out.write_text(json.dumps(found))
    finally:
        ray.shutdown()
        for process in _processes(temporary):
            process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def _processes(temporary: str) -> list[Any]:
    """Everything of this Ray, by its folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(temporary in part for part in p.info["cmdline"] or ())]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
