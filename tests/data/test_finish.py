"""A device that finishes images gives what the host gives, wherever a run begins and however many workers it has."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.data.augment import Finish, finished, flip_planes
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.draw import draw_micro_batch
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Augmentation

STRONG = Augmentation(hsv_h=0.1, flipud=0.5, paste_in=0.5)


def stream(
    dataset: ShardDataset, augment_on: str, augmentation: Augmentation = STRONG, **loader: object
) -> TrainingStream:
    sizes = {"image_size": 48, "global_batch_size": 16, "micro_batch_size": 4, "num_threads": 0}
    return TrainingStream(dataset, seed=5, augmentation=augmentation, augment_on=augment_on, **sizes | loader)  # type: ignore[arg-type]


@settings(max_examples=10)
@given(st.integers(0, 50), *[st.sampled_from([0.0, 0.3, 1.0])] * 4)
def test_a_device_makes_the_images_of_the_host(
    shards: Path, step: int, strength: float, flipud: float, fliplr: float, paste_in: float
) -> None:
    """So the distributions are equal, too. The host rounds colours to whole levels."""
    dataset = ShardDataset(shards)
    strengths = {"hsv_h": strength / 10, "hsv_s": strength, "hsv_v": strength}
    augmentation = Augmentation(flipud=flipud, fliplr=fliplr, paste_in=paste_in, **strengths)
    host, device = (stream(dataset, place, augmentation).micro_batch(step, 1) for place in ("host", "device"))
    assert host.finish is None and device.finish is not None
    assert device.keys == host.keys and torch.equal(device.targets, host.targets)
    found = 255 * finished(device.images.double() / 255, device.finish)
    assert (found - host.images).abs().max() <= (1.0 if strength else 1e-9)


def test_all_is_left_but_the_colour_of_images_that_receive_objects(dataset: ShardDataset) -> None:
    batches = [stream(dataset, "device").micro_batch(step, 0) for step in range(16)]
    finishes = [batch.finish for batch in batches if batch.finish is not None]
    is_left = (np.concatenate([finish.colours for finish in finishes]) != np.eye(3)).any((1, 2))
    flips = np.concatenate([finish.flips for finish in finishes])
    assert 0.3 < is_left.mean() < 0.7 and (np.abs(flips.mean(0) - 0.5) < 0.2).all()


def test_any_start_and_workers_leave_the_same_to_do(dataset: ShardDataset) -> None:
    numbers = list(itertools.product(range(4), range(4)))
    wanted = {number: stream(dataset, "device").micro_batch(*number).digest() for number in numbers}
    source = stream(dataset, "device", num_threads=2)
    found = list(itertools.islice(source.micro_batches(2, [1, 3]), 4))
    assert [batch.digest() for batch in found] == [wanted[batch.step, batch.index] for batch in found]
    assert len(set(wanted.values())) == 16
    moved = pickle.loads(pickle.dumps(source._maker))  # as a loader process gets it
    assert moved.make(source.plan(3, 1)).digest() == wanted[3, 1]


def test_what_is_left_is_part_of_the_digest_and_of_what_is_drawn(dataset: ShardDataset) -> None:
    batch = stream(dataset, "device").micro_batch(0, 0)
    assert batch.finish is not None
    before = batch.digest()
    batch.finish.flips[0, 0] ^= True
    assert batch.digest() != before
    undone, names = replace(batch, finish=None), ["a", "b", "c"]
    assert draw_micro_batch(batch, names) != draw_micro_batch(undone, names)


def test_flips_and_colours_meet_their_own_images() -> None:
    images = torch.rand(4, 3, 5, 7)
    finish = Finish.nothing(4)
    assert torch.equal(finished(images, finish), images)
    finish.flips[1], finish.flips[2] = (True, False), (False, True)
    finish.colours[3] = np.eye(3)[[2, 0, 1]]
    found = finished(images, finish).numpy()
    wanted = images.numpy().copy()
    flip_planes(wanted[1], upside_down=True, mirrored=False)
    flip_planes(wanted[2], upside_down=False, mirrored=True)
    wanted[3] = wanted[3, [2, 0, 1]]
    np.testing.assert_array_equal(found, wanted)
