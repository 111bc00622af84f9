"""GPUs and their driver, as the system sees them: Ray hides them from a task that asks for none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass

from yolofleet.cluster.doctor.finding import Line, Verdict

SUBJECT = "GPUs"
TIMEOUT_SECONDS = 30.0
QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    driver: str
    memory_mebibytes: int


@dataclass(frozen=True)
class Devices:
    """What a node has.

    Attributes:
        gpus: Its GPUs.
        driver_cuda: The newest CUDA that the driver runs, e.g. (13, 0); None without a driver.
        torch_cuda: The CUDA that torch was built for; None for a build for CPUs, or where nobody asked.
        problem: Why its GPUs cannot be seen although there is a driver.
    """

    gpus: tuple[Gpu, ...] = ()
    driver_cuda: tuple[int, int] | None = None
    torch_cuda: tuple[int, int] | None = None
    problem: str | None = None


def look_at_devices(gpus_are_wanted: bool) -> Devices:
    """Return what this machine has; torch is loaded only where it has GPUs or is to have some."""
    gpus: tuple[Gpu, ...] = ()
    problem = None
    command = shutil.which("nvidia-smi")
    if command is not None:
        try:
            done = subprocess.run(
                [command, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
            gpus = listed_gpus(done.stdout) if done.returncode == 0 else ()
            problem = None if done.returncode == 0 else " ".join((done.stdout or done.stderr).split())[:200]
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            problem = f"nvidia-smi: {type(error).__name__}: {error}"[:200]
    driver = _driver_cuda()
    torch_cuda = _torch_cuda() if gpus or driver or gpus_are_wanted else None
    return Devices(gpus, driver, torch_cuda, problem)


def listed_gpus(table: str) -> tuple[Gpu, ...]:
    """Return the GPUs of what nvidia-smi answers to `QUERY`.

    Raises:
        ValueError: It is no such answer.
    """
    rows = (line.rsplit(",", 2) for line in table.splitlines() if line.strip())
    return tuple(Gpu(name.strip(), driver.strip(), int(memory)) for name, driver, memory in rows)


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


def judge_devices(place: str, found: Devices, counted_by_ray: float, gpus_per_worker: float | None) -> Line:
    """Judge a node's GPUs by what Ray offers and what the job's workers need.

    Args:
        place: The node's name.
        found: What it has.
        counted_by_ray: GPUs that Ray gives away there.
        gpus_per_worker: What a worker of the job needs; None without a job.
    """
    wanted = bool(gpus_per_worker)
    where_asked_for: Verdict = "fail" if wanted or counted_by_ray else "warn"
    measured = {"gpus": float(len(found.gpus))}
    if found.problem is not None:
        cure = "repair the driver on the host (nvidia-smi must work there, and in the container)"
        return Line(place, SUBJECT, where_asked_for, f"the driver gives no answer: {found.problem}", cure, measured)
    if not found.gpus:
        if counted_by_ray:
            return Line(
                place, SUBJECT, "fail", f"Ray offers {counted_by_ray:g}, the system has none",
                "start the node without --num-gpus, or give its container the GPUs", measured,
            )  # fmt: skip
        if wanted:
            seen = f"none, and each worker of the job needs {gpus_per_worker:g}"
            cure = "workers will go to other nodes; if this one is to have GPUs, install the driver and start Ray again"
            return Line(place, SUBJECT, "warn", seen, cure, measured)
        return Line(place, SUBJECT, "ok", "none, none needed", measured=measured)
    names = ", ".join(sorted({gpu.name for gpu in found.gpus}))
    seen = f"{len(found.gpus)} x {names}, driver {found.gpus[0].driver}"
    if found.torch_cuda is None:
        return Line(
            place, SUBJECT, where_asked_for, f"{seen}, but torch is a build for CPUs", "use the CUDA image", measured
        )
    if found.driver_cuda is not None and found.driver_cuda[0] < found.torch_cuda[0]:
        return Line(
            place, SUBJECT, "fail",
            f"{seen} runs CUDA {_dotted(found.driver_cuda)} at most, torch was built for {_dotted(found.torch_cuda)}",
            "install a newer driver, or a torch for the driver's CUDA", measured,
        )  # fmt: skip
    if counted_by_ray != len(found.gpus):
        return Line(
            place, SUBJECT, "warn", f"{seen}; Ray offers {counted_by_ray:g}",
            "start the node with --num-gpus as many as there are, unless some are kept for others", measured,
        )  # fmt: skip
    return Line(place, SUBJECT, "ok", f"{seen}, CUDA {_dotted(found.torch_cuda)}", measured=measured)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
