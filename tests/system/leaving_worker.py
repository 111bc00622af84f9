"""One of torchrun's workers that leaves after a step: ``leaving_worker.py JOB.yaml STEP``."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist

from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

if __name__ == "__main__":
    dist.init_process_group("gloo")
    group = WorkerGroup(
        dist.get_rank(), dist.get_world_size(), progress=WorkerProgress(leave_after_step=int(sys.argv[2]))
    )
    job = JobSpec.load(sys.argv[1]).with_absolute_paths()
    if os.environ["RANK"] == "0":
        check_job(job)
    group.barrier()
    run_worker(job, group)
    dist.destroy_process_group()
