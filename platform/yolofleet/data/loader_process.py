"""A loader process and the memory that it shares with its parent: it writes images where the parent reads them.

The memory is a file without a name: nothing of it is left however the processes end, and the size of ``/dev/shm`` does
not matter. A task (a slot of the memory, the plan of a micro-batch) and its answer (labels, or an error) go through a
pair of sockets of this process alone, so each side notices at once when the other has ended.

Python's own processes would run the parent's main module again (Ray's in a Ray worker), be stopped by Ctrl-C before
their parent, and outlive a parent that is killed. Torch's loader allots memory in ``/dev/shm`` for every batch, and
imports torch in each process, which takes four times as long to start.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import RedactedError, UserError, WorkError
from yolofleet.core.terminal import guard_output

if TYPE_CHECKING:
    from yolofleet.data.micro_batch import Labels, MicroBatchPlan

PROGRAM = "from yolofleet.data.loader_process import main; main()"
END_SECONDS = 10.0
"""Time in which the kernel ends a killed process; one that hangs in a driver is left to it."""


class LoaderProcessError(WorkError):
    """A loader process ended by itself."""


class SharedSlots:
    """Memory for the images of micro-batches, in equal slots: as many as are in use at the same time.

    Args:
        slot_bytes: The most bytes of a micro-batch's images; what a smaller one leaves over takes no memory.
    """

    def __init__(self, slot_bytes: int) -> None:
        self.slot_bytes = -(-slot_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.descriptor = os.memfd_create("yolofleet-images")
        self._slots: list[NDArray[np.uint8]] = []
        self._users: dict[int, weakref.ref[NDArray[np.uint8]]] = {}

    def take(self, shape: tuple[int, ...]) -> tuple[int, NDArray[np.uint8]]:
        """Return the number of a free slot, and an array of a shape in it.

        The slot is in use as long as the array is, or a tensor made of it; numpy's own views do not count.
        """
        number = next((number for number, user in self._users.items() if user() is None), len(self._slots))
        if number == len(self._slots):
            os.ftruncate(self.descriptor, (number + 1) * self.slot_bytes)
            self._slots.append(map_slot(self.descriptor, self.slot_bytes, number))
        images = self._slots[number][: prod(shape)].reshape(shape)
        self._users[number] = weakref.ref(images)
        return number, images

    def close(self) -> None:
        """Give the memory back, except for the slots that are still in use."""
        os.close(self.descriptor)
        self._slots.clear()


def map_slot(descriptor: int, slot_bytes: int, number: int) -> NDArray[np.uint8]:
    """Return a slot of the shared memory as bytes."""
    return np.frombuffer(mmap.mmap(descriptor, slot_bytes, offset=number * slot_bytes), dtype=np.uint8)


class LoaderProcess:
    """A process that makes micro-batches, as its parent sees it; it ends with its parent.

    Args:
        maker: Descriptor of a file that holds the pickled `MicroBatchMaker`.
        slots: Where it writes images.
    """

    def __init__(self, maker: int, slots: SharedSlots) -> None:
        self._connection, theirs = Pipe()
        passed = (theirs.fileno(), maker, slots.descriptor)
        environment = {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",  # the processes are the parallelism
            "OPENBLAS_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, *map(str, (*passed, slots.slot_bytes))],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent
                env={**os.environ, **environment},
            )

    def ask(self, slot: int, plan: MicroBatchPlan) -> None:
        """Ask for a micro-batch, without waiting for it."""
        with self._alive():
            self._connection.send((slot, plan))

    def answer(self) -> Labels:
        """Wait for the oldest micro-batch that was asked for, and return its labels.

        Raises:
            LoaderProcessError: The process has ended.
            Exception: Whatever the maker raises.
        """
        with self._alive():
            answer: Labels | BaseException = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            code = self._process.wait(END_SECONDS)
            ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            reason = ", as the system does where memory is short" if code == -signal.SIGKILL else ""
            raise LoaderProcessError(
                f"loader process {self._process.pid} {ended}{reason}; resume the run with the same command, and where "
                "it happens again with fewer data.loader_threads, with more memory, or with data.loader=threads"
            ) from error

    def close(self) -> None:
        """End it, whatever it is doing: it has nothing to lose, and may be waiting for an object store."""
        self._connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)


def main() -> None:
    """Be a loader process until the parent has gone; the arguments are what `LoaderProcess` passes."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)  # where they reach all processes, the parent decides when to end
    guard_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    own_end, maker, memory, slot_bytes = map(int, sys.argv[1:])
    connection = Connection(own_end)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    slot = cache(partial(map_slot, memory, slot_bytes))
    threading.Thread(target=_work, args=(connection, tasks, maker, slot), name="work", daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            tasks.put(connection.recv_bytes())
    os._exit(0)  # whatever the other thread is doing


def _work(
    connection: Connection, tasks: queue.SimpleQueue[bytes], maker: int, slot: Callable[[int], NDArray[np.uint8]]
) -> None:
    """Answer tasks, one after the other."""
    import cv2

    cv2.setNumThreads(1)
    fill: Callable[[MicroBatchPlan, NDArray[np.uint8]], Labels] | None = None
    while True:
        task = tasks.get()
        answer: Labels | BaseException
        try:
            fill = fill or _received(mmap.mmap(maker, 0, prot=mmap.PROT_READ)).fill
            number, plan = _received(task)
            answer = fill(plan, slot(number)[: prod(plan.image_shape)].reshape(plan.image_shape))
        except BaseException as error:  # raised in the parent
            answer = _portable(error)
        with suppress(ConnectionError):  # the parent has gone
            connection.send(answer)


def _received(data: bytes | mmap.mmap) -> Any:
    """Return what the parent sent: only it has the other end of the socket and of the nameless memory."""
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError) as error:
        raise UserError(
            f"a loader process cannot import a part of the job: {error}; define it in a module on the Python path, or "
            "set data.loader=threads"
        ) from error


def _portable(error: BaseException) -> BaseException:
    """Return an error as what it is where it survives pickling; that of a mistake takes its traceback along."""
    if not isinstance(error, RedactedError):
        error.add_note("".join(["In a loader process:\n", *traceback.format_tb(error.__traceback__)]))
    try:
        return cast(BaseException, pickle.loads(pickle.dumps(error)))  # our own bytes, to see whether the parent can
    except Exception:
        return WorkError(f"a loader process failed: {type(error).__name__}: {error}")
