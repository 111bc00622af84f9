"""What one worker does, whoever started it: its own process, torchrun or Ray Train."""

from __future__ import annotations

import logging
from typing import Any

import torch

from yolofleet.specs.job import JobSpec
from yolofleet.storage.holder import Token
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.group import WorkerGroup
from yolofleet.training.hang_watch import watching
from yolofleet.training.loop import Outcome, train
from yolofleet.training.validation import Validation


def run_worker(
    job: JobSpec, group: WorkerGroup, token: Token | None = None, *, evaluate_apart: bool = False
) -> Outcome:
    """Take part in the job's run from where its run directory stands to its end.

    Args:
        job: What to compute.
        group: This worker's place.
        token: The run's lock, as whoever started the workers holds it; None where no one else can know of the run.
        evaluate_apart: Leave the evaluations to others, who find what waits in the run directory.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if group.device.type == "cpu":
        torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    with RunDirectory.open(job.storage, job.name, token=token) as run:

        def report(row: dict[str, Any]) -> None:
            run.append_metrics(row)
            group.pulse.tell(row)

        evaluate = None if evaluate_apart else Validation(job, group)
        with watching(group.pulse, job.cluster.hang_timeout_seconds, run.storage, group.rank):
            return train(job, run, group, evaluate=evaluate, report=report)
