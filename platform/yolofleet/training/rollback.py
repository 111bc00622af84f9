"""Going back to the last good checkpoint when numbers went wrong, and leaving out the steps that did it. Once.

Skipped steps leave the weights alone, but what made the next ones infinite may have happened before: weights that had
begun to diverge, a stretch of damaged samples. So the run goes back to the newest whole checkpoint before the first bad
step and does not do the bad steps again; their samples stay unused, every other sample keeps its place. If numbers go
wrong again, it is not the samples, and the run ends with the evidence. What was left out is in ``facts.json`` at once
and in the ``state.json`` of every later checkpoint.
"""

from __future__ import annotations

from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint import CheckpointStore
from yolofleet.training.finite import NonFiniteError
from yolofleet.training.group import WorkerGroup

FACT = "skipped_windows"


def skipped_windows(run: RunDirectory) -> list[list[int]]:
    """Return the steps [from, to) that the run leaves out."""
    return [[int(first), int(end)] for first, end in run.facts().get(FACT, [])]


def roll_back(run: RunDirectory, group: WorkerGroup, error: NonFiniteError) -> bool:
    """Prepare the run directory for going on from before the bad steps, and return whether that is possible.

    A collective: every worker gets the first one's answer.
    """
    return bool(group.first_value(int(group.is_first and _prepared(run, error))))


def _prepared(run: RunDirectory, error: NonFiniteError) -> bool:
    first, end = error.window
    store = CheckpointStore(run.storage.child("checkpoints"), told=run.append_event, fenced=run.check_held)
    good = store.newest(at_most=first)
    done = bool(skipped_windows(run))
    run.check_held()
    if not done and good is not None:
        run.record_facts(skipped_windows=[[first, end]])
    if good is not None:
        store.forget_after(good.step)  # a start from one of the bad steps would fail at once
    if done or good is None:
        reason = "it was done once and did not help" if done else "there is no checkpoint before it"
        run.append_event("not_rolled_back", window=[first, end], reason=reason)
        return False
    run.append_event("rolled_back", to_step=good.step, window=[first, end], reason=str(error))
    return True
