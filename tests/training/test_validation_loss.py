"""The loss on the validation set: that of the same pass, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.losses import DetectionLoss, scaled_gains
from yolofleet.models import build_model
from yolofleet.models.network import Network
from yolofleet.specs.job import JobSpec
from yolofleet.training.evaluation.checkpoint_evaluations import MeasuredNetwork, Validation
from yolofleet.training.loop.progress import LossTerms
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import trained_table
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def job(small_job: MakeJob) -> JobSpec:
    return small_job(evaluation={"batch_size": 3, "confidence": 0.0})


def network(job: JobSpec) -> Network:
    torch.manual_seed(1)
    return build_model(trained_table(job), num_classes=len(ShardDataset(job.data.val).classes)).eval()


def stream(job: JobSpec, rectangular: bool = False) -> EvaluationStream:
    size = job.data.image_size
    return EvaluationStream(
        ShardDataset(job.data.val), image_size=size, stride=32, batch_size=3, rectangular=rectangular
    )


def test_it_is_the_plain_loss_of_raw_predictions_averaged_over_batches(job: JobSpec) -> None:
    model, values = network(job), job.resolved_hyperparameters().document()
    loss = DetectionLoss(
        anchors=model.anchors,
        strides=model.strides,
        num_classes=model.num_classes,
        hyperparameters=scaled_gains(values, model.num_classes, 3, job.data.image_size),
        matching="fixed",
    )
    with torch.no_grad():
        found = [loss(model.raw(batch.images.float() / 255), batch.targets, (64, 64)) for batch in stream(job)]
    figures = Validation(job, WorkerGroup())(model)
    assert figures is not None
    for name in ("box", "objectness", "classification"):
        expected = sum(float(getattr(result, name)) for result in found) / len(found)
        assert figures[f"loss_{name}"] == pytest.approx(expected, rel=1e-5)
    assert figures["loss"] == pytest.approx(
        sum(figures[f"loss_{name}"] or 0 for name in ("box", "objectness", "classification"))
    )
    assert not model.training


def test_what_is_detected_does_not_change_and_nothing_is_passed_twice(job: JobSpec) -> None:
    model = network(job)
    measured = MeasuredNetwork(model, job, LossTerms(WorkerGroup()))
    passes = []
    model.blocks[next(iter(model.blocks))].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        for batch in measured.announce(stream(job)):
            images = batch.images.float() / 255
            passes.clear()
            ours = measured(images)
            assert len(passes) == 1
            assert torch.equal(ours, model(images))


@pytest.mark.parametrize("rectangular", [False, True])
def test_targets_are_the_boxes_of_the_annotation_in_the_input(job: JobSpec, rectangular: bool) -> None:
    annotations = ShardDataset(job.data.val).annotations()
    seen = 0
    for batch in stream(job, rectangular):
        height, width = batch.images.shape[-2:]
        for position, (image_id, box) in enumerate(zip(batch.image_ids, batch.letterboxes, strict=True)):
            rows = batch.targets[batch.targets[:, 0] == position]
            centres, sides = rows[:, 2:4], rows[:, 4:]
            corners = torch.cat([centres - sides / 2, centres + sides / 2], 1).double()
            found = box.undo(corners * torch.tensor([width, height, width, height]))
            of_image = [entry for entry in annotations["annotations"] if entry["image_id"] == image_id]
            expected = torch.tensor([entry["bbox"] for entry in of_image], dtype=torch.float64).view(-1, 4)
            expected[:, 2:] += expected[:, :2]
            torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
            seen += len(rows)
    assert seen == len(annotations["annotations"]) > 10


def test_shares_of_the_workers_give_the_mean_of_one(job: JobSpec) -> None:
    model = network(job)
    sums = []
    for rank in range(2):
        terms = LossTerms(WorkerGroup())
        measured = MeasuredNetwork(model, job, terms)
        part = EvaluationStream(
            ShardDataset(job.data.val), image_size=64, stride=32, batch_size=3, rank=rank, world_size=2
        )
        with torch.no_grad():
            for batch in measured.announce(part):
                measured(batch.images.float() / 255)
        sums.append(terms._sums.clone())
    total = sum(sums, torch.zeros(()))
    figures = Validation(job, WorkerGroup())(model)
    assert figures is not None
    assert figures["loss"] == pytest.approx(float(total[0] / total[4]), rel=1e-6)


def test_it_is_in_the_metrics_of_a_run_and_follows_from_what_is_learned(small_job: MakeJob) -> None:
    job = small_job(  # a low rate: at 0.02 the rounding of a CPU decides whether so few steps lower the loss
        epochs=6,
        hyperparameters={
            "lr0": 0.005,
            "warmup_min_steps": 4,
            "warmup_epochs": 0.5,
            "ema_ramp_steps": 10,
            "mosaic": 0.0,
        },
    )
    run = check_job(job).run
    run_worker(job, WorkerGroup())
    rows = [row for row in run.metrics() if "val_AP" in row]
    assert len(rows) > 1
    for row in rows:
        terms = [row[f"val_loss_{name}"] for name in ("box", "objectness", "classification")]
        assert row["val_loss"] == pytest.approx(sum(terms))
        assert all(term > 0 for term in terms)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
