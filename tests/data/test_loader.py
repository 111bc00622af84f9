"""Loader processes: order, errors, memory and ends; and which loader a job gets."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.makers import Plan, loader_processes, micro_batches
from yolofleet.core.errors import UserError, WorkError
from yolofleet.data.loader import choose_loader, forecast_speed
from yolofleet.data.loader_process import LoaderProcessError
from yolofleet.data.micro_batch import MicroBatch
from yolofleet.storage import StorageError

system = pytest.mark.system


def is_of(batch: MicroBatch, step: int) -> bool:
    return batch.step == step == int(batch.targets[0, 0]) and bool((batch.images == step % 256).all())


@system
@pytest.mark.parametrize(("number", "ahead"), [(1, 0), (3, 2), (2, 6)])
def test_micro_batches_come_in_order_whoever_is_slow(number: int, ahead: int) -> None:
    batches = list(micro_batches(number, ahead=ahead, plans=map(Plan, range(12)), step_1=0.3, step_6=0.1))
    assert len(batches) == 12 and all(is_of(batch, step) for step, batch in enumerate(batches))
    assert len({batch.keys for batch in batches}) == number, "every process takes part"
    assert batches[3].skipped == [("key", "3")]


@system
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("user", UserError, "shards: no good sample"),
        ("storage", StorageError, "s3://b/k: no answer"),
        ("mistake", ZeroDivisionError, "division by zero"),
        ("fixed", WorkError, "SampleError: its error cannot be pickled"),
    ],
)
def test_an_error_arrives_as_itself_in_its_turn(name: str, kind: type[Exception], message: str) -> None:
    batches = micro_batches(step_2=name)
    assert is_of(next(batches), 0) and is_of(next(batches), 1)
    with pytest.raises(kind, match=message) as caught:
        next(batches)
    assert getattr(caught.value, "transient", True)
    if name == "mistake":
        assert "makers.py" in caught.value.__notes__[0], "where it happened"
    assert loader_processes() == []


@system
def test_what_a_process_cannot_import_is_an_error_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "__module__", "nowhere")
    monkeypatch.setitem(sys.modules, "nowhere", sys.modules["data.makers"])
    with pytest.raises(UserError, match=r"No module named 'nowhere'; .* set data\.loader=threads"):
        next(micro_batches())


@system
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_is_an_error_with_a_cure(kind: signal.Signals) -> None:
    batches = micro_batches(step_3=60)  # it dies in the middle of its work
    next(batches)
    second = loader_processes()[1]
    second.send_signal(kind)
    with pytest.raises(
        LoaderProcessError, match=f"loader process {second.pid} was killed by {kind.name}.*data.loader="
    ):
        list(batches)
    assert loader_processes() == []


@system
def test_signals_that_reach_all_processes_leave_the_loader_to_its_parent() -> None:
    batches = micro_batches()
    next(batches)
    for process, kind in itertools.product(loader_processes(), (signal.SIGTERM, signal.SIGINT)):
        process.send_signal(kind)
    time.sleep(0.1)
    assert all(is_of(batch, step) for step, batch in enumerate(itertools.islice(batches, 20), start=1))


@system
def test_memory_is_used_again_but_never_that_of_a_batch_that_is_kept() -> None:
    def slots() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:yolofleet-images")

    gc.collect()  # of other tests
    assert slots() == 0
    batches = micro_batches(ahead=3)
    counts, kept, parts = [], [], []
    for batch in itertools.islice(batches, 300):
        counts.append(slots())
        if batch.step % 50 == 7:
            kept.append(batch)
        if batch.step % 50 == 9:
            parts.append((batch.step, batch.images[0, 1, :2].numpy()[1:]))  # all that is left of it
    assert counts[3:7] == [5] * 4, "three ahead, the one that is waited for, the one that is used"
    assert counts[-1] <= 5 + len(kept) + len(parts)
    assert all(is_of(batch, batch.step) for batch in kept) and len(kept) == 6
    assert all((part == step % 256).all() for step, part in parts)
    batches.close()  # type: ignore[attr-defined]
    assert all(is_of(batch, batch.step) for batch in kept), "after the end, too"
    del kept, parts, batch, batches
    assert slots() == 0


@system
def test_smaller_images_fill_a_part_of_a_slot() -> None:
    batches = list(micro_batches(plans=[Plan(step, image_size=8 * (1 + step % 4)) for step in range(8)]))
    assert [batch.images.shape[-1] for batch in batches] == [8, 16, 24, 32] * 2
    assert all(is_of(batch, step) for step, batch in enumerate(batches))
    assert all(batch.images.is_contiguous() and batch.images.dtype == torch.uint8 for batch in batches)


@system
def test_an_iterator_that_is_closed_early_ends_its_processes_whatever_they_do() -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    batches = micro_batches(3, step_1=60, step_2=60)
    next(batches)
    assert len(loader_processes()) == 3
    batches.close()  # type: ignore[attr-defined]
    assert loader_processes() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == files


PARENT = """
from data.makers import loader_processes, micro_batches
batches = micro_batches(step_1=60, step_2=60)
next(batches)
print(*(process.pid for process in loader_processes()), flush=True)
next(batches)
"""


@system
@pytest.mark.parametrize(
    "end",
    [
        lambda parent: parent.kill(),
        lambda parent: os.killpg(parent.pid, signal.SIGINT),
        lambda parent: os.killpg(parent.pid, signal.SIGTERM),
    ],
    ids=["killed", "ctrl-c", "terminated"],
)
def test_nothing_is_left_when_the_parent_ends(end: Callable[[subprocess.Popen[str]], None]) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", PARENT],  # who runs the tests may have it ignored
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        processes = [psutil.Process(int(process)) for process in parent.stdout.readline().split()]
        assert len(processes) == 2
        for process in processes:
            assert not [part for part in process.memory_maps() if "/dev/shm" in part.path], "its memory has no name"
        end(parent)
        parent.wait(30)
        assert not psutil.wait_procs(processes, timeout=30)[1]
        assert parent.stderr.read().count("Traceback") <= 1, "they end in silence"


@given(number=st.integers(1, 200), lock_share=st.floats(0, 1))
def test_the_forecast_is_bounded_by_the_cores_and_by_the_lock(number: int, lock_share: float) -> None:
    speed = forecast_speed(number, lock_share)
    assert 1 - 1e-9 <= speed <= number + 1e-6 and speed * lock_share <= 1 + 1e-6
    assert forecast_speed(number + 1, lock_share) >= speed - 1e-9
    assert forecast_speed(2, lock_share) == pytest.approx(2 / (1 + lock_share**2))


@given(number=st.integers(1, 64), image_size=st.integers(32, 2000))
def test_few_threads_and_small_images_keep_threads(number: int, image_size: int) -> None:
    chosen = choose_loader("auto", number, image_size)
    assert chosen == "threads" or (number > 2 and image_size >= 256)
    assert choose_loader("auto", number + 1, image_size) == "processes" or chosen == "threads"
    assert choose_loader("threads", number, image_size) == "threads"
    assert choose_loader("processes", number, image_size) == "processes"
    assert choose_loader("auto", 12, 640) == "processes"
