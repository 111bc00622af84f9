"""What is installed where a job is sent from, and whether a cluster has the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

PINNED = (
    "ray",
    "torch",
    "mlflow",
    "deepspeed",
    "webdataset",
    "boto3",
    "pycocotools",
    "numpy",
    "pydantic",
    "safetensors",
    "opencv-python-headless",
    "simplejpeg",
    "optuna",
)
"""Packages whose version decides what a job computes, or whether it runs at all."""


def installed_versions() -> dict[str, str]:
    """Return the version of Python (without the patch) and of each pinned package that is installed here."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PINNED:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # a CPU and a CUDA build are the same version
        except metadata.PackageNotFoundError:
            continue
    return found


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return a line for each package that is wanted and is not there, or is there in another version."""
    return [
        f"{name}: {version} where the job was sent from, {found.get(name, 'not installed')} here"
        for name, version in wanted.items()
        if found.get(name) != version
    ]
