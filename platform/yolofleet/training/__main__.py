"""``torchrun --nproc-per-node N -m yolofleet.training JOB.yaml [key=value ...]``."""

from __future__ import annotations

import os
import sys
from functools import partial

from yolofleet.core.errors import EXIT_USER_ERROR, EXIT_WORK_FAILED, UserError, WorkError
from yolofleet.core.output_guard import guard_output
from yolofleet.specs.job import JobSpec
from yolofleet.storage.lock import hold
from yolofleet.training.setup.preflight import check_job, run_storage
from yolofleet.training.supervision.worker import run_in_process


def main(arguments: list[str]) -> int:
    """Run the job of the first argument with the overrides of the others."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return EXIT_USER_ERROR
    guard_output()
    try:
        job = JobSpec.load(arguments[0], arguments[1:]).with_absolute_paths()
        if os.environ.get("RANK", "0") != "0":
            outcome = run_in_process(job)  # only the first process writes, so it alone holds the run
        else:
            with hold(run_storage(job), notify=partial(print, file=sys.stderr)) as lock:
                check_job(job)
                outcome = run_in_process(job, lock.token)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except WorkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_WORK_FAILED
    print(f"done: step {outcome.step}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
