"""The compose file without an engine: what it starts is pinned, healthy, on loopback, and holds no secret."""

from __future__ import annotations

import configparser
import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COMPOSE = Path(__file__).parents[2] / "infra" / "compose"
KEYS = {
    "image", "command", "restart", "read_only", "cap_drop", "security_opt", "tmpfs", "shm_size", "environment",
    "secrets", "volumes", "ports", "healthcheck", "depends_on", "deploy",
    "profiles",
}  # fmt: skip
Document = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Document:
    document: Document = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return document


def problems(compose: Document) -> list[str]:
    """What is wrong with a compose file."""
    services: dict[str, Document] = compose["services"]
    found = [f"{name}: unknown {set(entry) - KEYS}" for name, entry in services.items() if set(entry) - KEYS]
    for name, service in services.items():
        image = str(service.get("image"))
        default = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image)
        if ":" not in default or default.endswith(":latest"):
            found.append(f"{name}: {image} is not pinned")
        if any(not str(port).startswith("127.0.0.1:") for port in service.get("ports", ())):
            found.append(f"{name}: a port is open to all")
        if "no-new-privileges:true" not in service.get("security_opt", ()) or service.get("privileged"):
            found.append(f"{name}: may gain privileges")
        for secret in service.get("secrets", ()):
            source = secret["source"] if isinstance(secret, dict) else secret
            if source not in compose["secrets"]:
                found.append(f"{name}: secret {source} is not declared")
        for volume in service.get("volumes", ()):
            if volume.partition(":")[0] not in compose["volumes"]:
                found.append(f"{name}: {volume} is no named volume")
        for key, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|ROOT_USER", key)
            if secret and not re.search(r"_(FILE|PATH)$", key):
                found.append(f"{name}: {key} is in the file")
            if re.search(r"://[^/]*:[^/]*@", str(value)):
                found.append(f"{name}: {key} holds a password")
        for other, condition in service.get("depends_on", {}).items():
            if other not in services:
                found.append(f"{name}: depends on {other}, which is not there")
            elif condition == {"condition": "service_healthy"} and not _has_health(services[other]):
                found.append(f"{name}: waits for {other}, which tells no health")
        if service["restart"] != "no" and not _has_health(service):
            found.append(f"{name}: tells no health")
    found += [f"{name} is read from elsewhere" for name, entry in compose["secrets"].items()
              if entry != {"file": f"./secrets/{name}"}]  # fmt: skip
    return found


def _has_health(service: Document) -> bool:
    """The platform's own image brings a check."""
    own = "yolofleet" in str(service["image"])
    return "test" in service.get("healthcheck", {}) or (own and not service.get("healthcheck", {}).get("disable"))


def test_the_compose_file_holds_what_it_promises(compose: Document) -> None:
    assert problems(compose) == []
    assert set(compose["services"]) == {"minio", "buckets", "postgres", "mlflow", "head", "worker", "gpu-worker"}
    (gpus,) = compose["services"]["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert compose["services"]["gpu-worker"]["profiles"] == ["gpu"], "a host without GPUs starts without it"
    assert not any("--num-gpus=0" in part for part in compose["services"]["gpu-worker"]["command"])
    for name in ("head", "worker", "gpu-worker", "mlflow"):
        assert compose["services"][name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert compose["services"][name]["read_only"] is True
    assert "--num-cpus=0" in compose["services"]["head"]["command"], "no work on the head"
    assert "--app-name=basic-auth" in compose["services"]["mlflow"]["command"][-1]


BROKEN: dict[str, Callable[[Document], object]] = {
    "a port for all": lambda c: c["services"]["minio"].update(ports=["9000:9000"]),
    "a password in the file": lambda c: c["services"]["postgres"]["environment"].update(POSTGRES_PASSWORD="x"),
    "a password in an address": lambda c: c["services"]["head"]["environment"].update(DB="postgresql://a:b@c/d"),
    "the newest image": lambda c: c["services"]["minio"].update(image="minio/minio:latest"),
    "no health": lambda c: c["services"]["postgres"].pop("healthcheck"),
    "a folder of the host": lambda c: c["services"]["head"].update(volumes=["/:/host"]),
    "a secret that is not declared": lambda c: c["secrets"].pop("ray_token"),
    "a secret from elsewhere": lambda c: c["secrets"]["ray_token"].update(file="/etc/token"),
    "a key that is none": lambda c: c["services"]["head"].update(comand=["ray"]),
    "a service that is not there": lambda c: c["services"]["head"].update(
        depends_on={"nowhere": {"condition": "service_healthy"}}
    ),
    "privileges": lambda c: c["services"]["worker"].update(security_opt=[]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_lint_finds_what_is_broken(name: str, compose: Document) -> None:
    broken = copy.deepcopy(compose)
    BROKEN[name](broken)
    assert problems(broken), name


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path: Path, compose: Document) -> None:
    shutil.copy(COMPOSE / "make-secrets.sh", tmp_path)
    made: list[dict[str, str]] = []
    for _ in range(2):
        done = subprocess.run([tmp_path / "make-secrets.sh"], capture_output=True, text=True, check=True)
        folder = tmp_path / "secrets"
        made.append({path.name: path.read_text() for path in folder.iterdir()})
        assert folder.stat().st_mode & 0o777 == 0o700, "nobody else gets to the files"
        assert not any(text in done.stdout + done.stderr for text in made[0].values())
    assert made[0] == made[1], "a second time changes nothing"
    assert set(compose["secrets"]) <= set(made[0])
    assert len(made[0]["ray_token"]) == 64 and made[0]["ray_token"] != made[0]["minio_password"]
    for name in ("storage_credentials", "mlflow_credentials", "mlflow_authentication"):
        parser = configparser.ConfigParser()
        parser.read_string(made[0][name])
        assert parser.sections() in (["default"], ["mlflow"])
    assert f"RAY_AUTH_TOKEN_PATH={tmp_path}/secrets/ray_token" in made[0]["environment.sh"]
    assert made[0]["minio_password"] in made[0]["storage_credentials"]
    assert made[0]["mlflow_password"] in made[0]["mlflow_authentication"]
