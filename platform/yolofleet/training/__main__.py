"""``torchrun --nproc-per-node N -m yolofleet.training JOB.yaml [key=value ...]``."""

from __future__ import annotations

import os
import sys

from yolofleet.core.errors import EXIT_USER_ERROR, UserError, WorkError
from yolofleet.core.terminal import guard_output, note
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_file
from yolofleet.storage.lock import hold
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.setup.preflight import check_job, run_storage
from yolofleet.training.setup.worker_cpus import with_cpus
from yolofleet.training.supervision.worker import run_in_process


def main(arguments: list[str]) -> int:
    """Run the job of the first argument with the overrides of the others."""
    if not arguments or arguments[0].startswith("-"):
        note(__doc__ or "")
        return EXIT_USER_ERROR
    guard_output()
    try:
        job = JobSpec.load(open_file(arguments[0]), arguments[1:]).with_absolute_paths()
        _ = job.resolved_micro_batch_size  # each process has to know it now
        storage = run_storage(job)
        job = with_cpus(job, RunDirectory(storage), launcher="process")
        if os.environ.get("RANK", "0") != "0":
            outcome = run_in_process(job)  # only the first process writes, so it alone holds the run
        else:
            with hold(storage, notify=note) as lock:
                check_job(job)
                outcome = run_in_process(job, lock.token)
    except UserError as error:
        note(f"error: {error}")
        return EXIT_USER_ERROR
    except WorkError as error:
        note(f"failed: {error}")
        return error.exit_code
    note(f"done: step {outcome.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
