"""GPUs and their driver, as the system sees them: Ray hides them from a task that asks for none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial

from yolofleet.cluster.doctor.finding import Finding, Verdict
from yolofleet.core.text import one_line

SUBJECT = "GPUs"
TIMEOUT_SECONDS = 30.0
QUERY = ("--query-gpu=name,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    driver: str


@dataclass(frozen=True)
class Devices:
    """The devices of a node."""

    gpus: tuple[Gpu, ...] = ()
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver runs, e.g. (13, 0); None without a driver."""
    torch_cuda: tuple[int, int] | None = None
    """The CUDA that torch was built for; None for a build for CPUs, or where torch was not loaded."""
    problem: str | None = None
    """Why its GPUs cannot be seen although there is a driver."""


def probe_devices(gpus_are_wanted: bool) -> Devices:
    """Return this machine's devices; torch is loaded only where there are GPUs or a job asks for them."""
    gpus: tuple[Gpu, ...] = ()
    problem = None
    if (command := shutil.which("nvidia-smi")) is not None:
        try:
            done = subprocess.run(
                [command, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
            gpus = parse_gpus(done.stdout) if done.returncode == 0 else ()
            problem = None if done.returncode == 0 else one_line(done.stdout or done.stderr, 200)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            problem = one_line(f"nvidia-smi: {type(error).__name__}: {error}", 200)
    driver = _driver_cuda()
    torch_cuda = _torch_cuda() if gpus or driver or gpus_are_wanted else None
    return Devices(gpus, driver, torch_cuda, problem)


def parse_gpus(table: str) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's answer to `QUERY`.

    Raises:
        ValueError: The text is not such an answer.
    """
    rows = (line.rsplit(",", 1) for line in table.splitlines() if line.strip())
    return tuple(Gpu(name.strip(), driver.strip()) for name, driver in rows)


def _driver_cuda() -> tuple[int, int] | None:
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except OSError:
        return None
    return (version.value // 1000, version.value % 1000 // 10) if version.value else None


def _torch_cuda() -> tuple[int, int] | None:
    import torch

    if torch.version.cuda is None:
        return None
    major, minor, *_ = torch.version.cuda.split(".")
    return int(major), int(minor)


def check_devices(node: str, found: Devices, offered_by_ray: float, gpus_per_worker: float | None) -> Finding:
    """Compare a node's GPUs with what Ray offers there and what the job's workers need.

    Args:
        node: The node's name.
        found: Its devices.
        offered_by_ray: GPUs that Ray offers there.
        gpus_per_worker: What a worker of the job needs; None without a job.
    """
    finding = partial(Finding, node, SUBJECT, measured={"gpus": float(len(found.gpus))})
    where_wanted: Verdict = "fail" if gpus_per_worker or offered_by_ray else "warn"
    if found.problem is not None:
        cure = "repair the driver on the host (nvidia-smi must work there, and in the container)"
        return finding(where_wanted, f"the driver gives no answer: {found.problem}", cure)
    if not found.gpus:
        if offered_by_ray:
            cure = "start the node without --num-gpus, or give its container the GPUs"
            return finding("fail", f"Ray offers {offered_by_ray:g}, the system has none", cure)
        if gpus_per_worker:
            cure = "workers will run on other nodes; if this one has GPUs, install the driver and start Ray again"
            return finding("warn", f"none, and each worker of the job needs {gpus_per_worker:g}", cure)
        return finding("ok", "none, none needed")
    names = ", ".join(sorted({gpu.name for gpu in found.gpus}))
    seen = f"{len(found.gpus)} x {names}, driver {found.gpus[0].driver}"
    if found.torch_cuda is None:
        return finding(where_wanted, f"{seen}, but torch is a CPU build", "use the CUDA image")
    # A driver runs every CUDA of its own major version and older ones.
    if found.driver_cuda is not None and found.driver_cuda[0] < found.torch_cuda[0]:
        most, built_for = _format_version(found.driver_cuda), _format_version(found.torch_cuda)
        cure = "install a newer driver, or a torch for the driver's CUDA"
        return finding("fail", f"{seen} runs CUDA {most} at most, torch was built for {built_for}", cure)
    if offered_by_ray != len(found.gpus):
        cure = "start the node with --num-gpus set to this number, unless some are reserved for others"
        return finding("warn", f"{seen}; Ray offers {offered_by_ray:g}", cure)
    return finding("ok", f"{seen}, CUDA {_format_version(found.torch_cuda)}")


def _format_version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
