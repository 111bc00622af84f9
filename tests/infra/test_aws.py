"""AWS: Ray's own bootstrap of the launcher's file on a made-up account, the machine's cache, and the notice of spot."""

from __future__ import annotations

import copy
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from metadata_service import metadata_service, notice

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS")

AWS = Path(__file__).parents[2] / "infra" / "aws"
REGION = "us-east-1"
Document = dict[str, Any]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Document]:
    """An account with the stack of network.yaml; yields the launcher's file with its names filled in."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts its SSH key there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    from ray.autoscaler._private.aws import utils

    with mock_aws():
        utils.resource_cache.cache_clear()
        ec2 = boto3.client("ec2")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        zone = {"Name": "availability-zone", "Values": [f"{REGION}a"]}
        subnet = ec2.describe_subnets(Filters=[zone])["Subnets"][0]["SubnetId"]
        bastion = ec2.create_security_group(GroupName="bastion", Description="x", VpcId=vpc)["GroupId"]
        stacks = boto3.client("cloudformation")
        stacks.create_stack(
            StackName="yolofleet",
            TemplateBody=(AWS / "network.yaml").read_text(),
            Parameters=[
                {"ParameterKey": "Vpc", "ParameterValue": vpc},
                {"ParameterKey": "Administrators", "ParameterValue": bastion},
            ],
        )
        outputs = stacks.describe_stacks(StackName="yolofleet")["Stacks"][0]["Outputs"]
        made = {entry["OutputKey"]: entry["OutputValue"] for entry in outputs}
        _make_the_rest(ec2, made["SecurityGroup"])
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        text = (AWS / "cluster.yaml").read_text().replace("subnet-replace", subnet)
        text = text.replace("sg-replace", made["SecurityGroup"]).replace("pg-replace", "together")
        document = yaml.safe_load(text.replace("ami-replace-with-deep-learning-base-ubuntu-24-04", image))
        yield document | {"bastion": bastion, "group": made["SecurityGroup"]}
        utils.resource_cache.cache_clear()


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's short functions as the text that follows them."""


_Template.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))


def _make_the_rest(ec2: Any, group: str) -> None:
    """Make by a call the rule of what goes out, which moto's CloudFormation leaves out (and placement groups)."""
    for resource in yaml.load((AWS / "network.yaml").read_text(), _Template)["Resources"].values():
        fields = resource.get("Properties", {})
        if resource["Type"] == "AWS::EC2::SecurityGroupEgress" and "DestinationSecurityGroupId" in fields:
            assert fields["GroupId"] == fields["DestinationSecurityGroupId"] == "Cluster.GroupId"
            rule = {"IpProtocol": fields["IpProtocol"], "UserIdGroupPairs": [{"GroupId": group}]}
            ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[rule])


def bootstrapped(document: Document) -> Document:
    """What Ray makes of the launcher's file, with what it makes in the account."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    asked = {key: value for key, value in document.items() if key not in ("bastion", "group")}
    found: Document = bootstrap_aws(prepare_config(asked))
    return found


def problems(document: Document) -> list[str]:
    """What is wrong with the network of a cluster, once Ray has completed it: each rule of each group is read."""
    kinds = bootstrapped(document)["available_node_types"]
    groups = {name: set(kind["node_config"].get("SecurityGroupIds", ())) for name, kind in kinds.items()}
    known = {entry["GroupId"]: entry for entry in boto3.client("ec2").describe_security_groups()["SecurityGroups"]}
    found = []
    for name in sorted(groups):
        for group in sorted(groups[name]):
            for rule in known[group]["IpPermissions"]:
                addresses = [*rule["IpRanges"], *rule.get("Ipv6Ranges", ()), *rule.get("PrefixListIds", ())]
                sources = {pair["GroupId"] for pair in rule["UserIdGroupPairs"]}
                if addresses:
                    found.append(f"{name}: {group} lets in {addresses} on port {rule.get('FromPort', 'all')}")
                if not sources <= {*groups[name], document["bastion"]}:
                    found.append(f"{name}: {group} lets in {sources}")
        for other in sorted(groups):
            if not any(_admits(known[group], groups[other]) for group in groups[name]):
                found.append(f"{name} cannot be reached by {other}")
    return found


def _admits(group: Document, sources: set[str]) -> bool:
    """Whether a group lets in every port from one of some groups: Ray's ports are many, and some are random."""
    rules = [rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "-1"]
    return any({pair["GroupId"] for pair in rule["UserIdGroupPairs"]} & sources for rule in rules)


def test_every_node_reaches_every_other_and_nobody_else_reaches_any(account: Document) -> None:
    assert problems(account) == []
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    assert {entry["GroupName"] for entry in groups if entry["GroupName"].startswith(("ray", "yolofleet"))} <= {
        entry["GroupName"] for entry in groups if entry["GroupId"] == account["group"]
    }, "Ray has made no group of its own"
    (ours,) = [entry for entry in groups if entry["GroupId"] == account["group"]]
    ssh = [rule for rule in ours["IpPermissions"] if rule.get("FromPort") == 22]
    assert [[pair["GroupId"] for pair in rule["UserIdGroupPairs"]] for rule in ssh] == [[account["bastion"]]]
    assert any(pair["GroupId"] == account["group"] for rule in ours["IpPermissionsEgress"]
               for pair in rule["UserIdGroupPairs"]), "EFA asks for it"  # fmt: skip


BROKEN: dict[str, Callable[[Document], object]] = {
    "a group that Ray makes for the head": lambda c: c["available_node_types"]["head"]["node_config"].pop(
        "NetworkInterfaces"
    ),
    "the same with a name": lambda c: (
        c["available_node_types"]["head"]["node_config"].pop("NetworkInterfaces"),
        c["provider"].update(security_group={"GroupName": "yolofleet-ray", "IpPermissions": []}),
    ),
    "another group for the head": lambda c: c["available_node_types"]["head"]["node_config"]["NetworkInterfaces"][
        0
    ].update(Groups=[c["bastion"]]),
    "SSH for the world": lambda c: boto3.client("ec2").authorize_security_group_ingress(
        GroupId=c["group"], IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    ),
    "a port between nodes alone": lambda c: boto3.client("ec2").revoke_security_group_ingress(
        GroupId=c["group"],
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": c["group"]}]}],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_network_that_is_closed_or_open_is_found(name: str, account: Document) -> None:
    broken = copy.deepcopy(account)
    BROKEN[name](broken)
    assert problems(broken), name


def test_a_gpu_machine_uses_all_its_network_cards_and_none_is_paid_for_without_a_job(account: Document) -> None:
    kinds = account["available_node_types"]
    for name in ("on-demand", "spot"):
        interfaces = kinds[name]["node_config"]["NetworkInterfaces"]
        assert [entry["NetworkCardIndex"] for entry in interfaces] == [*range(32)], "p5.48xlarge has 32"
        assert {entry["InterfaceType"] for entry in interfaces[1:]} == {"efa-only"}
        assert kinds[name]["min_workers"] == 0
    assert account["docker"]["image"].endswith("-cuda-efa")


def test_the_shards_of_any_job_go_to_the_folder_that_is_mounted(account: Document) -> None:
    options = account["docker"]["run_options"]
    folder = next(option for option in options if "YOLOFLEET_SHARD_CACHE=" in option).rpartition("=")[2]
    mounts = [option.removeprefix("--volume=").split(":") for option in options if option.startswith("--volume=")]
    assert ["/mnt/cache", "/cache"] in mounts and folder.startswith("/cache/")


@pytest.mark.parametrize(
    ("mounted", "disks", "expected"),
    [
        ("/mnt/cache", "nvme1n1", []),
        ("/opt/dlami/nvme", "nvme1n1", ["mount --bind /opt/dlami/nvme/yolofleet /mnt/cache"]),
        ("", "nvme1n1 nvme2n1", ["mdadm --create /dev/md/yolofleet --run --level=0 --force --raid-devices=2 "
                                 "/dev/nvme1n1 /dev/nvme2n1", "mkfs.ext4 -q -E nodiscard /dev/md/yolofleet",
                                 "mount -o noatime /dev/md/yolofleet /mnt/cache"]),
        ("", "", []),
    ],
)  # fmt: skip
def test_the_cache_goes_to_the_machines_own_disks(
    mounted: str, disks: str, expected: list[str], tmp_path: Path
) -> None:
    """The command as it is, on stand-ins for what it calls."""
    (command, _) = yaml.safe_load((AWS / "cluster.yaml").read_text())["initialization_commands"]
    listed = "/dev/nvme0n1 Amazon Elastic Block Store\\n" + "".join(
        f"/dev/{disk} Amazon EC2 NVMe Instance Storage\\n" for disk in disks.split()
    )
    stand_ins = {
        "sudo": 'echo "$*" >> "$LOG"',
        "mountpoint": '[ "$2" = "$MOUNTED" ]',
        "lsblk": f'printf "{listed}"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(log), "MOUNTED": mounted}
    subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=60)
    done = log.read_text().splitlines()
    assert [line for line in done if not line.startswith("install")] == expected
    owned = "install --directory --mode=0755 --owner=10001 --group=10001 /mnt/cache"
    assert (done[-1] == owned) == (mounted != "/mnt/cache"), "what was mounted over it belongs to the image's user, too"


WATCHER: Document = runpy.run_path(str(AWS / "spot_notice.py"))


def test_a_notice_becomes_a_drain_with_what_is_left_of_two_minutes() -> None:
    """No answer, an expired token, an odd answer and a drain that is refused at first are all lived through."""
    left: list[tuple[int, str]] = []

    def leave(seconds: int, action: str) -> bool:
        left.append((seconds, action))
        return len(left) == 2

    answers = [(404, ""), (503, ""), (401, ""), (200, "<html>"), (200, "[1]"), (200, notice(120))]
    with metadata_service(answers) as (url, seen):
        WATCHER["watch"](WATCHER["Metadata"](url), leave, poll_seconds=0.01)
    assert [action for _, action in left] == ["terminate"] * 2
    assert all(100 <= seconds <= 110 for seconds, _ in left), "it ends before the machine does"
    assert seen.count("PUT /latest/api/token 21600") == 2, "a token is taken once, and again when it has expired"
    assert {entry for entry in seen if entry.startswith("GET")} == {"GET /latest/meta-data/spot/instance-action"}


def test_a_drain_that_hangs_is_tried_again(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\n[ -e {tmp_path}/hung ] || {{ touch {tmp_path}/hung; exec sleep 60; }}\n")
    ray.chmod(0o755)
    code = (AWS / "spot_notice.py").read_text().replace("DRAIN_SECONDS = 30.0", "DRAIN_SECONDS = 0.5")
    (tmp_path / "spot_notice.py").write_text(code.replace('Path(sys.executable).parent / "ray"', f'"{ray}"'))
    watcher = runpy.run_path(str(tmp_path / "spot_notice.py"))
    with metadata_service([(200, notice(120))]) as (url, _):
        watcher["watch"](watcher["Metadata"](url), lambda *told: watcher["drain"](*told, None), poll_seconds=0.01)
    assert (tmp_path / "hung").exists()


def test_a_metadata_service_that_is_away_is_no_notice() -> None:
    assert WATCHER["Metadata"]("http://127.0.0.1:9").interruption() is None


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"time": "2026-11-29T12:02:00Z"}, 110), ({"time": "2026-11-29T12:00:05Z"}, 1), ({"time": "soon"}, 60),
        ({"time": "2026-11-29T11:00:00Z"}, 1), ({"time": None}, 60), ({}, 60),
    ],
)  # fmt: skip
def test_the_time_that_is_left(fields: Document, seconds: int) -> None:
    assert WATCHER["seconds_left"](fields, datetime(2026, 11, 29, 12, tzinfo=UTC)) == seconds


def test_the_program_calls_ray_and_one_of_them_watches_a_machine(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ray").write_text('#!/bin/sh\necho "$*" >> "$LOG"\n')
    (programs / "ray").chmod(0o755)
    (programs / "python").symlink_to("/bin/false")
    code = (AWS / "spot_notice.py").read_text().replace('Path(sys.executable).parent / "ray"', f'"{programs / "ray"}"')
    script = tmp_path / "spot_notice.py"
    script.write_text(code)
    with metadata_service([(404, ""), (200, notice(120))]) as (url, _):
        environment = os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url + "/", "TMPDIR": str(tmp_path)}
        environment["LOG"] = str(tmp_path / "log")
        command = [sys.executable, str(script), "--node-id", "ab12"]
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        lock = tmp_path / f"yolofleet-spot-notice-{os.getuid()}.lock"
        while not lock.exists():
            assert first.poll() is None
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        output = first.communicate(timeout=60)[0]
    assert first.returncode == 0 and "the node is being drained" in output
    told = (tmp_path / "log").read_text().splitlines()
    assert all(line.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION") for line in told)
    assert told[0].endswith("--node-id ab12") and "--deadline-remaining-seconds 1" in told[0]
    assert second.returncode == 1 or len(told) == 2, "the second one ended at once, unless the first was done"
