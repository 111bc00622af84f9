"""Makers of micro-batches for tests of loader processes, which import this module; and how to find those processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.data.loader import make_in_processes
from yolofleet.data.loader_process import PROGRAM
from yolofleet.data.micro_batch import Labels, MicroBatch
from yolofleet.data.records import SampleError
from yolofleet.storage import StorageError

SIZE = 32


@dataclass(frozen=True)
class Plan:
    """As much of a plan as a loader needs."""

    step: int
    index: int = 0
    image_size: int = SIZE

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return 1, 3, self.image_size, self.image_size


ERRORS: dict[str, Exception] = {
    "user": UserError("shards: no good sample"),
    "storage": StorageError("s3://b/k: no answer", transient=True),
    "mistake": ZeroDivisionError("division by zero"),
    "fixed": SampleError("damaged", "its error cannot be pickled", "key"),
}


@dataclass(frozen=True)
class Maker:
    """Fills a micro-batch with the number of its step."""

    at: dict[int, Any] = field(default_factory=dict)
    """What happens at a step instead: a name of `ERRORS`, or how many seconds it sleeps."""

    def fill(self, plan: Plan, images: NDArray[np.uint8]) -> Labels:
        happens = self.at.get(plan.step)
        if isinstance(happens, str):
            raise ERRORS[happens]
        time.sleep(happens or 0)
        images[:] = plan.step % 256
        return Labels(np.full((1, 6), plan.step, dtype=np.float32), (str(os.getpid()),), [("key", str(plan.step))])


def micro_batches(number: int = 2, *, ahead: int = 4, plans: Any = None, **at: Any) -> Iterator[MicroBatch]:
    """Yield the micro-batches of steps 0, 1, 2, ... from loader processes; ``step_3="user"`` raises at step 3."""
    maker: Any = Maker({int(name.removeprefix("step_")): value for name, value in at.items()})
    steps: Any = map(Plan, count()) if plans is None else plans
    return make_in_processes(maker, steps, num_processes=number, ahead=ahead, slot_bytes=3 * SIZE * SIZE)


def loader_processes() -> list[psutil.Process]:
    """Return the loader processes of this process, in the order of their start."""
    children = psutil.Process().children()
    return sorted((child for child in children if PROGRAM in child.cmdline()), key=lambda child: child.pid)
