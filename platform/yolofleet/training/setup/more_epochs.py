"""More epochs for a run that is finished: the one change of what a run computes that its directory takes.

The run trains on from its last checkpoint, with its momentum and its average. Its schedule is planned anew: the
learning rate rises to where it would have been at this step, had the run had the new epochs from its start. Until which
step the earlier epochs held is a fact of the run, so every later start plans the same.
"""

from __future__ import annotations

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.schedule import EARLIER_EPOCHS

EVENT = "epochs_raised"


def check_epochs(
    job: JobSpec, recorded: JobSpec, run: RunDirectory, done_steps: int, num_steps: int, over: bool
) -> None:
    """Refuse other epochs than more of them for a finished run.

    Args:
        job: What shall be trained; it differs from ``recorded`` in its epochs alone.
        recorded: The job as it was started.
        run: Its run directory.
        done_steps: Steps of the newest checkpoint.
        num_steps: Steps of the recorded job.
        over: Whether the run has ended before them, by `stop`.

    Raises:
        UserError: Says what can be done.
    """
    change = f"run '{job.name}' in {job.storage}: epochs was {recorded.epochs:g}, now {job.epochs:g}"
    again = f"To train again from its weights, with a new warm-up: name={job.name}-2 initial_weights={run.url}"
    if job.epochs < recorded.epochs:
        raise UserError(
            f"{change}. A run cannot be made shorter: its learning rate was planned for "
            f"{plural(recorded.epochs, 'epoch', form='g')}. Resume it with epochs={recorded.epochs:g}, and to end it "
            f"early set stop.patience or stop.max_hours. {again}"
        )
    if done_steps < num_steps and not over:
        raise UserError(
            f"{change}. The epochs of a run can be raised once it is finished, and it has done {done_steps} of "
            f"{plural(num_steps, 'step')}: resume it with epochs={recorded.epochs:g} first, then raise them. {again}"
        )


def raise_epochs(job: JobSpec, recorded: JobSpec, run: RunDirectory, done_steps: int) -> None:
    """Record until which step the earlier epochs held; repeated after a crash, it changes nothing."""
    plans = run.facts().get(EARLIER_EPOCHS, [])
    if all(until_step != done_steps for _, until_step in plans):  # else nothing was trained since they were raised last
        run.record_facts(**{EARLIER_EPOCHS: [*plans, [recorded.epochs, done_steps]]})
    change = {"was": recorded.epochs, "now": job.epochs, "step": done_steps}
    if not any(event.get("kind") == EVENT and change.items() <= event.items() for event in run.events()):
        run.append_event(EVENT, **change)
        run.close()
