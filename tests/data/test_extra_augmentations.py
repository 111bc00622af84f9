"""Registered augmentation steps: checked with the job, pure functions of the position, after the built-in steps."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.stream import MicroBatch, TrainingStream
from yolofleet.specs.base import SpecError
from yolofleet.specs.hyperparameters import AUGMENTATIONS, Augmentation, AugmentationStep, merged
from yolofleet.specs.job import JobSpec


@AUGMENTATIONS.register("test-darken")
class Darken(AugmentationStep):
    amount: Annotated[int, Field(ge=0, le=255)] = 20

    def apply(self, image: Any, boxes: Any, classes: Any, generator: np.random.Generator) -> Any:
        noise = generator.integers(0, self.amount + 1, size=image.shape)
        return np.clip(image.astype(int) - noise, 0, 255).astype(np.uint8), boxes, classes


@AUGMENTATIONS.register("test-boxes")
class ChangeBoxes(AugmentationStep):
    def apply(self, image: Any, boxes: Any, classes: Any, generator: np.random.Generator) -> Any:
        image[:] = 7  # in place
        kept = [[-10.0, 4.0, 20.0, 500.0], [30.0, 30.0, 30.0, 40.0], [np.nan, 1.0, 2.0, 3.0]]
        return image, np.array(kept), np.array([1, 2, 0])


@AUGMENTATIONS.register("test-wrong")
class Wrong(AugmentationStep):
    def apply(self, image: Any, boxes: Any, classes: Any, generator: np.random.Generator) -> Any:
        return image[:-1], boxes, classes


def make(dataset: ShardDataset, *steps: dict[str, Any], **changes: Any) -> MicroBatch:
    augmentation = Augmentation.parse({"extra_augmentations": list(steps)} | changes, source="test")
    sizes = {"image_size": 64, "global_batch_size": 8, "micro_batch_size": 8}
    return TrainingStream(dataset, seed=5, augmentation=augmentation, num_threads=0, **sizes).micro_batch(1, 0)


def test_a_step_changes_its_share_of_the_samples_and_nothing_else(dataset: ShardDataset) -> None:
    plain = make(dataset)
    darker = make(dataset, {"name": "test-darken", "share": 0.5})
    again = make(dataset, {"name": "test-darken", "share": 0.5})
    assert darker.digest() == again.digest() != plain.digest()
    assert darker.targets.equal(plain.targets) and darker.keys == plain.keys
    changed = [not np.array_equal(a, b) for a, b in zip(darker.images.numpy(), plain.images.numpy(), strict=True)]
    assert 0 < sum(changed) < 8
    difference = plain.images.numpy().astype(int) - darker.images.numpy().astype(int)
    assert difference.min() == 0 and 15 < difference.max() <= 20
    assert make(dataset, {"name": "test-darken", "share": 0.0}).digest() == plain.digest()
    stronger = make(dataset, {"name": "test-darken", "share": 0.5, "amount": 200})
    assert stronger.digest() != darker.digest()


def test_steps_follow_each_other_in_the_order_of_the_job(dataset: ShardDataset) -> None:
    first = make(dataset, {"name": "test-darken", "amount": 5}, {"name": "test-boxes"})
    last = make(dataset, {"name": "test-boxes"}, {"name": "test-darken", "amount": 5})
    assert np.unique(first.images.numpy()).tolist() == [7]
    assert set(np.unique(last.images.numpy())) == {2, 3, 4, 5, 6, 7}


def test_returned_boxes_are_clipped_and_empty_ones_dropped(dataset: ShardDataset) -> None:
    targets = make(dataset, {"name": "test-boxes"}, fliplr=0.0).targets.numpy()
    assert targets.tolist() == [[slot, 1, 10 / 64, 34 / 64, 20 / 64, 60 / 64] for slot in range(8)]


def test_a_step_that_returns_something_else_is_named(dataset: ShardDataset) -> None:
    with pytest.raises(UserError, match=r"augmentation 'test-wrong' returned an image \(63, 64, 3\)"):
        make(dataset, {"name": "test-wrong"})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"name": "test-darkn"}], "no augmentation 'test-darkn'; did you mean 'test-darken'?"),
        ([{"name": "test-darken", "amont": 3}], "did you mean 'amount'?"),
        ([{"name": "test-darken", "amount": 300}], "less than or equal to 255"),
        ([{"name": "test-darken", "share": 1.5}], "less than or equal to 1"),
        ([{"share": 1.0}], "a mapping with the name of an augmentation"),
        (["test-darken"], "a mapping with the name of an augmentation"),
        ({"name": "test-darken"}, "extra_augmentations: "),
    ],
)
def test_a_job_is_refused_with_what_is_wrong_in_it(steps: Any, message: str) -> None:
    job = {"name": "a", "model": {"name": "yolov7"}, "data": {"train": "t", "val": "v"}}
    job["hyperparameters"] = {"extra_augmentations": steps}
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(job, source="job.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("job.yaml: hyperparameters: ")


def test_steps_survive_the_way_through_a_document() -> None:
    chosen = merged("p5", {"extra_augmentations": [{"name": "test-darken", "amount": 3}]})
    step = chosen.extra_augmentations[0]
    assert isinstance(step, Darken) and (step.amount, step.share) == (3, 1.0)
    assert chosen.document()["extra_augmentations"] == [{"name": "test-darken", "share": 1.0, "amount": 3}]
    assert merged("p5", chosen.document()) == chosen
    assert chosen.without_composition().extra_augmentations == chosen.extra_augmentations
