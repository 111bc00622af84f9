"""Whole commands on small drawn data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from system.shell import Shell


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn images and the shards made from them."""
    folder = tmp_path_factory.mktemp("drawn")
    shell = Shell(folder)
    shell.succeed("data", "synth", "images", "--images", "80", "--seed", "3", "--image-size", "128")
    for part in ("train", "val"):
        shell.succeed("data", "shard", f"images/instances_{part}.json", "images/images", f"shards/{part}")
    return folder


@pytest.fixture(scope="session")
def household(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with everything that the pages name."""
    from system.household import fill  # torch is heavy, most tests do not need it

    return fill(tmp_path_factory.mktemp("household"), drawn)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder; what it left running is ended afterwards."""
    yield Shell(tmp_path)
    _end_processes(tmp_path)


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder with the records of an older yolofleet; what it left running is ended afterwards."""
    from system.older_records import unpack  # torch is heavy, most tests do not need it

    yield unpack(tmp_path)
    _end_processes(tmp_path)


def _end_processes(folder: Path) -> None:
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder) and process.pid != os.getpid():
            process.kill()
