"""Everything in infra/ that starts a server: Ray asks for its token, and nothing listens for the world."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from yolofleet.core import ray_runtime

INFRA = Path(__file__).parents[2] / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
WITHIN_A_NETWORK = {
    "network.yaml": "no server: what nodes of AWS may call; what reaches them is looked at in test_aws.py",
    "compose.yaml": "the compose network; its published ports are on loopback (test_compose.py)",
    "mlflow.yaml": "the namespace, by its network policy (test_kubernetes_base.py)",
    "minio.yaml": "the namespace, by its network policy (test_kubernetes_base.py)",
}
"""Files whose servers listen on all addresses of a network that only their own services are in."""


def ray_starters() -> Iterator[Path]:
    """The files that start a node of Ray's, or say how it is started."""
    for path in FILES:
        if re.search(r"\bray\W+start\b|ray\.scripts\.scripts", path.read_text(errors="replace")):
            yield path


def test_whatever_starts_ray_is_looked_at() -> None:
    assert {path.parent.name for path in ray_starters()} == {"aws", "compose", "local", "slurm", "systemd"}


@pytest.mark.parametrize("path", ray_starters(), ids=lambda path: path.name)
def test_ray_asks_for_a_token(path: Path) -> None:
    text = path.read_text()
    if path.name == "services.py":  # its environment is looked at while it runs (test_local_services.py)
        assert '"RAY_AUTH_MODE": "token"' in text
    else:
        assert re.search(r"RAY_AUTH_MODE[=:] ?token", text)
    assert "RAY_AUTH_TOKEN_PATH" in text, "the token is a file, not a word of the environment or of a command"
    assert "RAY_AUTH_MODE=disabled" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_nothing_listens_for_the_world(path: Path) -> None:
    text = path.read_text(errors="replace")
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    if "0.0.0.0" in code or "--address :" in code or "[::]" in code:
        assert path.name in WITHIN_A_NETWORK
    for option in re.findall(r"--dashboard-host[= ](\S+)", code):
        assert option.startswith(("127.0.0.1", "{LOOPBACK}")) or path.name in WITHIN_A_NETWORK, option
    for head in re.findall(r"start[^\n]*--head[^\n]*(?:\\?\n[^\n]*){0,3}", code):
        assert "dashboard-host" in head, "the dashboard's address is said, not left to Ray"
    assert not re.search(
        r"privileged: *true|network_mode: *host|hostNetwork: *true|hostPort|type: *(NodePort|LoadBalancer)", code
    )


def test_what_is_meant_for_a_network_is_there() -> None:
    assert {path.name for path in FILES} >= set(WITHIN_A_NETWORK)
    compose = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name
    policies = list(yaml.safe_load_all((INFRA / "kubernetes" / "base" / "network.yaml").read_text()))
    guarded = set()
    for policy in policies:
        selector = policy["spec"]["podSelector"]
        guarded |= set(selector.get("matchLabels", {}).values())
        guarded |= {value for entry in selector.get("matchExpressions", ()) for value in entry["values"]}
    assert guarded == {"minio", "mlflow", "postgres"}


def test_no_file_holds_a_secret() -> None:
    for path in FILES:
        text = path.read_text(errors="replace")
        assert not re.search(r"://[^/\s:@$]+:[^/\s@$*]+@", text), path
        assert not re.search(
            r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|(?i:password|secret|token): *['\"]?\w{12,}", text
        ), path


def test_a_ray_of_our_own_has_a_token_and_a_dashboard_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # an imported Ray would keep the mode for all later tests
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    made = []
    for _ in range(2):
        ray_runtime.make_token()
        made.append({name: os.environ[name] for name in names[:2]})
        for name in names[:2]:
            monkeypatch.delenv(name)
    assert made[0]["RAY_AUTH_MODE"] == "token" and len(made[0]["RAY_AUTH_TOKEN"]) == 64
    assert made[0]["RAY_AUTH_TOKEN"] != made[1]["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/the/users/own")
    ray_runtime.make_token()
    assert "RAY_AUTH_TOKEN" not in os.environ, "what the user has set stays"
    assert ray_runtime.local_options(dashboard=True)["dashboard_host"] == "127.0.0.1"
