"""The cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_cores(cgroup: Path = CGROUP) -> int:
    """Return the cores that this process is bound to, but no more than its container's share of the machine."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Return the cores that a control group allows, in its second or first version."""
    try:
        if (file := cgroup / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no control groups, or none that limits
        return math.inf
