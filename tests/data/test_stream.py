from __future__ import annotations

import itertools
import os
import pickle
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from data.remote_shards import cached_bytes, opened
from faulty_s3 import FaultyProxy
from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.data.records import Sample
from yolofleet.data.stream import MicroBatch, TrainingStream
from yolofleet.specs.hyperparameters import Augmentation

SIDE, GLOBAL, MICRO = 48, 16, 2


def stream(dataset: ShardDataset, **changes: object) -> TrainingStream:
    arguments: dict[str, object] = {
        "seed": 5,
        "image_size": SIDE,
        "global_batch_size": GLOBAL,
        "micro_batch_size": MICRO,
        "augmentation": Augmentation(),
        "num_threads": 0,
    }
    return TrainingStream(dataset, **(arguments | changes))  # type: ignore[arg-type]


def taken(source: TrainingStream, start: int, owned: list[int], steps: int) -> list[MicroBatch]:
    return list(itertools.islice(source.micro_batches(start, owned), steps * len(owned)))


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> dict[tuple[int, int], str]:
    """Digest of every micro-batch of ten steps (more than three epochs), read by one worker without a stop."""
    batches = taken(stream(ShardDataset(shards)), 0, list(range(8)), 10)
    return {(batch.step, batch.index): batch.digest() for batch in batches}


def check(
    shards: Path, undisturbed: dict[tuple[int, int], str], stops: list[int], worlds: list[int], **loader: list[object]
) -> None:
    """Read ten steps in parts; of each: its workers, and what makes their micro-batches."""
    seen: dict[tuple[int, int], str] = {}
    for part, (start, end) in enumerate(itertools.pairwise([0, *stops, 10])):
        chosen = {name: values[part] for name, values in loader.items()}
        for rank in range(worlds[part]):
            owned = list(range(rank, GLOBAL // MICRO, worlds[part]))  # uneven where the world does not divide
            for batch in taken(stream(ShardDataset(shards), **chosen), start, owned, end - start):
                assert (batch.step, batch.index) not in seen
                seen[batch.step, batch.index] = batch.digest()
    assert seen == undisturbed


@settings(max_examples=8)
@given(
    stops=st.lists(st.integers(1, 9), max_size=3, unique=True).map(sorted),
    worlds=st.lists(st.integers(1, 8), min_size=4, max_size=4),
    threads=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_any_stops_workers_and_threads_give_the_same_batches(
    shards: Path,
    undisturbed: dict[tuple[int, int], str],
    stops: list[int],
    worlds: list[int],
    threads: list[int],
) -> None:
    check(shards, undisturbed, stops, worlds, num_threads=threads)


@pytest.mark.system
@settings(max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # processes take time to start
@given(
    stop=st.integers(1, 9),
    worlds=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    number=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    loaders=st.sampled_from([["processes", "processes"], ["processes", "threads"], ["threads", "processes"]]),
)
def test_threads_and_processes_give_the_same_batches(
    shards: Path,
    undisturbed: dict[tuple[int, int], str],
    stop: int,
    worlds: list[int],
    number: list[int],
    loaders: list[str],
) -> None:
    check(shards, undisturbed, [stop], worlds, num_threads=number, loader=loaders)


@pytest.mark.system
@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_a_cache_that_holds_too_little_delays_and_changes_nothing(
    s3: FaultyProxy, shards: Path, tmp_path: Path, undisturbed: dict[tuple[int, int], str], loader: str
) -> None:
    largest = max(entry.bytes for entry in ShardDataset(shards).manifest.shards)
    remote = opened(tmp_path, max_bytes=int(2.5 * largest))
    batches = taken(stream(remote, loader=loader, num_threads=3), 0, list(range(8)), 10)
    assert {(batch.step, batch.index): batch.digest() for batch in batches} == undisturbed
    assert cached_bytes(tmp_path) <= int(2.5 * largest)
    num_fetched = sum(request.path.endswith(".tar") for request in s3.requests)
    assert num_fetched > len(remote.manifest.shards), "the cache held everything"


def test_an_epoch_shows_every_sample_once(dataset: ShardDataset) -> None:
    batches = taken(stream(dataset, global_batch_size=9, micro_batch_size=3), 0, [0, 1, 2], 2 * len(dataset) // 9)
    keys = Counter(key for batch in batches for key in batch.keys)
    assert len(keys) == len(dataset) and set(keys.values()) == {2}


@pytest.mark.parametrize("step", [0, 1, 3, 1_000_003])
def test_going_on_at_any_step_reads_the_samples_of_that_step_alone(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    numbers: list[int] = []
    read = dataset.read
    monkeypatch.setattr(dataset, "read", lambda number, *limits: numbers.append(number) or read(number, *limits))
    batch = taken(stream(dataset), step, [3], 1)[0]
    assert len(numbers) == MICRO and (batch.step, batch.index) == (step, 3)


@pytest.mark.parametrize("micro", [1, 2, 4, 16])
def test_any_micro_batch_works(dataset: ShardDataset, micro: int) -> None:
    for batch in taken(stream(dataset, micro_batch_size=micro), 0, [0], 2):
        assert batch.images.shape == (micro, 3, SIDE, SIDE) and batch.images.dtype == torch.uint8
        assert batch.targets.shape[1] == 6 and batch.targets.dtype == torch.float32
        assert batch.images.is_contiguous()


def test_targets_lie_inside_and_name_their_image(dataset: ShardDataset) -> None:
    for batch in taken(stream(dataset), 0, list(range(8)), 4):
        targets = batch.targets.numpy()
        assert set(targets[:, 0]) <= set(range(MICRO)) and set(targets[:, 1]) <= {0, 1, 2}
        low, high = targets[:, 2:4] - targets[:, 4:6] / 2, targets[:, 2:4] + targets[:, 4:6] / 2
        assert (low >= -1e-6).all() and (high <= 1 + 1e-6).all() and (targets[:, 4:6] > 2 / SIDE - 1e-6).all()


def test_sizes_and_strengths_may_change_with_the_step(dataset: ShardDataset) -> None:
    plain = Augmentation.none()
    source = stream(
        dataset,
        image_size_at=lambda step: 32 + 32 * (step % 2),
        augmentation=lambda step: plain if step else Augmentation(),
    )
    sides = [batch.images.shape[-1] for batch in taken(source, 0, [0], 4)]
    assert sides == [32, 64, 32, 64]
    fixed = stream(dataset, image_size=64, augmentation=plain)
    assert source.micro_batch(1, 2).digest() == fixed.micro_batch(1, 2).digest()


@pytest.mark.parametrize("owned", [[], [8], [-1, 0]])
def test_micro_batches_that_do_not_exist_are_refused(dataset: ShardDataset, owned: list[int]) -> None:
    with pytest.raises(UserError, match=r"0\.\.7"):
        stream(dataset).micro_batches(0, owned)


def test_a_global_batch_that_is_no_whole_number_of_micro_batches_is_refused(dataset: ShardDataset) -> None:
    with pytest.raises(UserError, match="global_batch_size 16 is not a whole number of micro-batches of 5"):
        stream(dataset, micro_batch_size=5)


def test_without_augmentation_a_sample_is_its_letterboxed_image(dataset: ShardDataset) -> None:
    batch = stream(dataset, augmentation=Augmentation.none(), image_size=96).micro_batch(0, 0)
    records = dict(dataset.records())
    for slot, key in enumerate(batch.keys):
        record = records[key]
        pixels = dataset.read_decoded([name for name, _ in dataset.records()].index(key)).pixels
        left, top = (96 - record.width) // 2, (96 - record.height) // 2
        shown = batch.images[slot].numpy().transpose(1, 2, 0)
        assert (shown[top : top + record.height, left : left + record.width] == pixels).all()
        boxes = record.boxes[~record.iscrowd]
        targets = batch.targets.numpy()[batch.targets[:, 0].numpy() == slot]
        corners = (targets[:, 2:4] - targets[:, 4:6] / 2) * 96 - (left, top)
        assert np.allclose(np.clip(corners, 0, None), np.clip(boxes[:, :2], 0, None), atol=1e-3)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_shows_every_image_once_over_all_ranks(
    dataset: ShardDataset, world: int, rectangular: bool, threads: int
) -> None:
    seen: list[int] = []
    for rank in range(world):
        source = EvaluationStream(
            dataset,
            image_size=64,
            stride=32,
            batch_size=4,
            rank=rank,
            world_size=world,
            rectangular=rectangular,
            num_threads=threads,
        )
        batches = list(source)
        assert len(batches) == len(source)
        for batch in batches:
            seen += batch.image_ids
            assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
            assert len(batch.image_ids) == len(batch.letterboxes) == len(batch.original_sizes) == len(batch.images)
    assert sorted(seen) == sorted(record.image_id for _, record in dataset.records())


@pytest.mark.parametrize("rectangular", [False, True])
def test_evaluation_letterboxes_can_be_undone(dataset: ShardDataset, rectangular: bool) -> None:
    for batch in EvaluationStream(dataset, image_size=128, stride=32, batch_size=5, rectangular=rectangular):
        for (height, width), box in zip(batch.original_sizes, batch.letterboxes, strict=True):
            whole = torch.tensor([[0.0, 0.0, float(width), float(height)]])
            inside = box.apply(whole)
            assert max(inside[0, 2] - inside[0, 0], inside[0, 3] - inside[0, 1]) == 128, "the longer side is the size"
            assert torch.allclose(box.undo(inside), whole, atol=1e-3)


def test_evaluation_refuses_a_size_that_the_model_cannot_take(dataset: ShardDataset) -> None:
    with pytest.raises(UserError, match="image_size 100 is not a multiple of the model's stride 32; take 96"):
        EvaluationStream(dataset, image_size=100, stride=32, batch_size=1)


def test_the_number_of_open_shards_is_bounded(drawn: Path, build: Callable[..., object], tmp_path: Path) -> None:
    """At least 16, as many as are asked for ahead, and never more than half of the files that a process may open."""
    build(drawn / "instances.json", drawn / "images", tmp_path, shard_samples=1)
    dataset = ShardDataset(tmp_path)
    num_shards = len(dataset.manifest.shards)

    def num_open() -> int:
        paths = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # that of the listing itself
                paths.append(os.readlink(f"/proc/self/fd/{name}"))
        return sum(path.startswith(f"{tmp_path}/") for path in paths)

    def read_all() -> int:
        for number in range(len(dataset)):
            assert dataset.read(number).image
        return num_open()

    assert num_shards > 40 and num_open() == 0 and read_all() == 16
    dataset.prefetch(range(num_shards))
    assert read_all() == num_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (50, 4096))
        dataset.prefetch(range(num_shards))
    assert num_open() == 25 and read_all() == 25
    dataset.prefetch([0])
    assert num_open() == 16 and read_all() == 16


def test_a_dataset_travels_to_another_process_and_reads_there(dataset: ShardDataset) -> None:
    before = dataset.read(3).image
    again = pickle.loads(pickle.dumps(dataset))
    assert again.read(3).image == before and len(again) == len(dataset)
    assert stream(again).micro_batch(0, 0).digest() == stream(dataset).micro_batch(0, 0).digest()


class WatchedDataset(ShardDataset):
    """Notes each shard that is read while `prefetch` does not name it."""

    named: frozenset[int] = frozenset()
    unnamed: list[int]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.named = frozenset(shards)

    def read(self, number: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Sample:
        if (shard := self.locate(number)[0]) not in self.named:
            self.unnamed.append(shard)
        return super().read(number, max_pixels)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_shard_is_kept_until_its_last_micro_batch_is_made(
    tmp_path: Path, drawn: Path, build: Callable[..., object], threads: int
) -> None:
    """Also by threads that make what was planned before a lane entered its next window."""
    build(drawn / "instances.json", drawn / "images", tmp_path / "shards", shard_samples=1)
    dataset = WatchedDataset(tmp_path / "shards")
    dataset.unnamed = []
    taken(stream(dataset, global_batch_size=4, num_threads=threads), 0, [0, 1], 32)
    assert dataset.unnamed == []
