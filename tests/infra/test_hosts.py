"""Plain hosts and clouds: the launcher's file by Ray's own schema, units and scripts by their own readers."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from yolofleet.specs.job import JobSpec
from yolofleet.training.supervision.nodes import has_room, offers_of_groups

INFRA = Path(__file__).parents[2] / "infra"
LABELLED = "{yolofleet.io/capacity: on-demand}"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def launcher() -> Document:
    document: Document = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    return document


def ray_schema() -> Document:
    """The schema by which Ray itself checks a launcher's file."""
    import ray

    schema: Document = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    return schema


def test_the_launcher_file_is_valid_by_ray_itself(launcher: Document) -> None:
    jsonschema.validate(launcher, ray_schema())
    kinds = launcher["available_node_types"]
    assert launcher["head_node_type"] in kinds and kinds["head"]["resources"]["CPU"] == 0
    assert "--num-cpus=0" in " ".join(launcher["head_start_ray_commands"])
    assert "SpotOptions" in kinds["spot"]["node_config"]["InstanceMarketOptions"]
    assert "InstanceMarketOptions" not in kinds["on-demand"]["node_config"]
    for kind in kinds.values():
        node = kind["node_config"]
        assert node["IamInstanceProfile"] and node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])
        assert 0 <= kind.get("min_workers", 0) <= kind.get("max_workers", 0) <= launcher["max_workers"]
    assert "security_group" not in launcher["provider"], "one that Ray makes lets in the world on port 22"
    assert any("spot-notice" in command for command in launcher["worker_start_ray_commands"])
    for name in ("on-demand", "spot"):
        assert kinds[name]["node_config"]["NetworkInterfaces"][0]["InterfaceType"] == "efa"
        assert kinds[name]["labels"] == {"yolofleet.io/capacity": name}
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    text = (INFRA / "aws" / "cluster.yaml").read_text()
    assert not re.search(r"aws_access_key|AKIA|ssh_private_key|password", text, re.IGNORECASE)


def test_the_driver_reads_what_may_be_started_from_the_file_that_the_launcher_leaves(
    launcher: Document, tmp_path: Path
) -> None:
    left = tmp_path / "ray_bootstrap_config.yaml"
    left.write_text(json.dumps(launcher))  # as Ray writes it
    job = JobSpec.load(INFRA.parent / "jobs" / "coco-yolov7.yaml", ["cluster.first_worker_labels=" + LABELLED])
    offers = offers_of_groups(None, left)
    assert [(offer.name, offer.count, offer.resources["GPU"]) for offer in offers] == [
        ("on-demand", 1, 8),
        ("spot", 7, 8),
    ]
    assert not has_room(job.cluster, [], offers), "no GPU machine runs yet, and the job waits for one"


BROKEN: dict[str, Callable[[Document], object]] = {
    "an unknown key": lambda c: c.update(head_node={}),
    "no provider": lambda c: c.pop("provider"),
    "a head type that is no text": lambda c: c.update(head_node_type=1),
    "a node type without resources": lambda c: c["available_node_types"]["spot"].pop("resources"),
    "workers that are no number": lambda c: c.update(max_workers="many"),
    "commands that are no list": lambda c: c.update(setup_commands="true"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rays_schema_refuses_what_is_broken(name: str, launcher: Document) -> None:
    broken = copy.deepcopy(launcher)
    BROKEN[name](broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, ray_schema())


def test_the_nodes_role_gives_what_a_run_needs_and_no_more() -> None:
    policy = json.loads((INFRA / "aws" / "node-role.json").read_text())
    actions = {action for entry in policy["Statement"] for action in _listed(entry["Action"])}
    assert {"s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject"} <= actions
    assert not any("*" in action for action in actions)
    assert all(resource != "*" for entry in policy["Statement"] for resource in _listed(entry["Resource"]))
    writable = [entry["Resource"] for entry in policy["Statement"] if "s3:PutObject" in _listed(entry["Action"])]
    assert writable == ["arn:aws:s3:::YOUR-RUNS/*"]


def test_the_heads_role_starts_and_ends_workers_and_gives_no_other_role() -> None:
    policy = json.loads((INFRA / "aws" / "head-role.json").read_text())
    actions = {action: entry for entry in policy["Statement"] for action in _listed(entry["Action"])}
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:DescribeInstances", "ec2:TerminateInstances"} <= {*actions}
    assert not any("*" in action for action in actions)
    assert actions["iam:PassRole"]["Resource"] == "arn:aws:iam::*:role/yolofleet-node"
    cluster = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    ends = actions["ec2:TerminateInstances"]["Condition"]["StringEquals"]
    assert ends == {"ec2:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in cluster["available_node_types"].items()
    }
    assert profiles == {"head": "yolofleet-head", "on-demand": "yolofleet-node", "spot": "yolofleet-node"}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_unit_is_well_formed(name: str, tmp_path: Path) -> None:
    text = (INFRA / "systemd" / f"yolofleet-{name}.service").read_text()
    for line in ("User=yolofleet", "NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet="):
        assert line in text.splitlines()
    assert "LoadCredential=ray_token:" in text and "RAY_AUTH_MODE=token" in text
    assert ("--num-cpus=0" in text) == (name == "head")
    assert "--temp-dir=/var/lib/yolofleet/ray" in text and "StateDirectory=yolofleet" in text, "logs outlast a crash"
    assert "RuntimeDirectory" not in text and "ProtectHome=true" in text and "CacheDirectory=yolofleet" in text
    assert "Environment=HOME=/var/lib/yolofleet XDG_CACHE_HOME=/var/cache/yolofleet" in text, "no home is needed"
    (check,) = re.findall(r"^ExecStartPre=(/bin/sh .*)$", text, re.MULTILINE)
    for missing in ("NODE_ADDRESS", "HEAD_ADDRESS") if name == "worker" else ("NODE_ADDRESS",):
        addresses = {"NODE_ADDRESS": "10.0.0.2", "HEAD_ADDRESS": "10.0.0.1"}
        command = shlex.split(check.replace("$$", "$"))
        assert subprocess.run(command, env=addresses, check=False).returncode == 0
        del addresses[missing]
        refused = subprocess.run(command, env=addresses, capture_output=True, text=True, check=False)
        assert refused.returncode and f"{missing}: is not set in /etc/yolofleet/cluster.env" in refused.stderr
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit is not verified")
    unit = tmp_path / f"yolofleet-{name}.service"
    unit.write_text(text.replace("/opt/yolofleet/bin/ray", sys.executable))
    (tmp_path / "broken.service").write_text(unit.read_text().replace("KillMode=mixed", "KillMode=some"))
    done, broken = (
        subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
        for path in (unit, tmp_path / "broken.service")
    )
    assert unit.name not in done.stderr, done.stderr
    assert "broken.service" in broken.stderr


def test_the_slurm_script_starts_ray_in_the_allocation_and_ends_it(tmp_path: Path) -> None:
    """The script as it is, on stand-ins for SLURM's own commands and for what they start."""
    log = tmp_path / "log"
    stand_ins = {
        "scontrol": 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; else echo "scontrol $*" >> "$LOG"; fi',
        "srun": 'echo "srun $*" >> "$LOG"; while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "ray": 'echo "ray $* mode=$RAY_AUTH_MODE token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"\n'
        '[ "$1" = health-check ] || exec sleep 300\n[ -z "$TOLD_EARLY" ] || kill -TERM "$PPID"',
        "python": 'case "$2" in *socket*) echo "asked the way to $3" >> "$LOG"; echo "$ADDRESS"; exit;; esac\n'
        'case "$ALONE" in dead) exit 1;; yes) echo 1;; *) grep --count "^ray start" "$LOG";; esac',
        "yolofleet": 'echo "yolofleet $*" >> "$LOG"; [ "$2" != bad.yaml ] || exit 2\n'
        '[ "$2" != long.yaml ] || { trap "exit 1" TERM; echo running >> "$LOG"; while :; do sleep 0.1; done; }',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(log), "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_ON_NODE": "96",
        "ADDRESS": "10.0.0.1", "ALONE": "", "TOLD_EARLY": "", "YOLOFLEET_POLL_SECONDS": "0",
    }  # fmt: skip
    script = str(INFRA / "slurm" / "ray.sbatch")

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *arguments],
            env=environment | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert run().returncode == 2
    assert run("train", "job.yaml").returncode == 0
    told = log.read_text()
    assert "asked the way to two" in told
    steps = [line for line in told.splitlines() if line.startswith("srun")]
    assert len(steps) == 3 and all("--cpu-bind=none --cpus-per-task=96" in step for step in steps)
    assert "ray start --head --block --node-ip-address=10.0.0.1 --port=20077" in told
    assert "ray start --block --address=10.0.0.1:20077" in told and "yolofleet train job.yaml" in told
    assert told.count("token=600") == told.count("mode=token") > 2
    assert "requeue" not in told
    for alone in ("yes", "dead"):
        partial = run("train", "job.yaml", ALONE=alone)
        assert partial.returncode == 0 and "only 1 of 2 nodes have joined" in partial.stderr, "told, and no end"
    itself = run("train", "job.yaml", ADDRESS="127.0.1.1")
    assert itself.returncode == 1 and "one leads to two by 127.0.1.1, which is itself" in itself.stderr
    assert run("train", "bad.yaml").returncode == 2, "the command's exit code is the job's"
    assert run("train", "never.yaml", TOLD_EARLY="yes").returncode == 143
    told = log.read_text()
    assert "never.yaml" not in told and told.count("scontrol requeue 77") == 1, "nobody would have told it to stop"
    stopped = subprocess.Popen([script, "train", "long.yaml"], env=environment, cwd=tmp_path, text=True)
    while "running" not in log.read_text():
        assert stopped.poll() is None
    stopped.terminate()
    assert stopped.wait(timeout=60) == 1
    assert log.read_text().count("scontrol requeue 77") == 2
    assert not list(tmp_path.glob(".yolofleet-*")), "the token does not outlive the allocation"
