"""Ray with TLS, as SECURITY.md has it: who holds a certificate of the cluster's own authority gets in, nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.certificates import ray_tls_settings
from cluster.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]
ANSWER_SECONDS = 240.0
REFUSED_SECONDS = 40.0
"""Ray goes on trying: who has not got in by then, though its neighbour has, does not get in."""
ASK = "import ray; ray.init(logging_level='error'); print(ray.get(ray.remote(lambda: 41 + 1).remote()))"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import ray

    # Ray tells others the host's own address, whatever --node-ip-address says: the certificate names that too.
    addresses = ["127.0.0.1", ray.util.get_node_ip_address()]
    return ray_tls_settings(tmp_path_factory.mktemp("ours") / "tls", addresses)


@pytest.fixture(scope="module")
def guarded(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head with room for a computation."""
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), head_cpus=1, settings=settings)
    yield made
    made.close()


def asked(cluster: LocalCluster, environment: dict[str, str], timeout_seconds: float) -> str:
    """What a driver prints that asks for a small computation."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=os.environ | cluster.environment | environment, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, timeout=timeout_seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode()
    return done.stdout


def test_only_the_authoritys_own_get_in(guarded: LocalCluster, settings: dict[str, str], tmp_path: Path) -> None:
    assert asked(guarded, settings, ANSWER_SECONDS) == "42\n"
    stranger = ray_tls_settings(tmp_path / "tls", ["127.0.0.1"])
    assert asked(guarded, stranger, REFUSED_SECONDS) == "", "a certificate of another authority"
    assert asked(guarded, {}, REFUSED_SECONDS) == "", "no certificate, but the right token"
    assert asked(guarded, settings, ANSWER_SECONDS) == "42\n", "and the cluster is none the worse"
