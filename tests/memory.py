"""How much memory and time a call takes, for tests of readers that must not take much."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert match is not None
    return int(match[1])


@contextmanager
def bounded(*, megabytes: float = 100, seconds: float = 2) -> Iterator[None]:
    """Fail where the body takes more memory at any moment, or more time of this process (others take theirs)."""
    CLEAR_PEAK.write_text("5")
    before, began = _kilobytes("VmRSS"), time.process_time()
    yield
    taken, grown = time.process_time() - began, (_kilobytes("VmHWM") - before) / 1000
    assert taken < seconds, f"took {taken:.2f} s"
    assert grown < megabytes, f"grew by {grown:.0f} MB"
