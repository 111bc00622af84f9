from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yolofleet.training.loop.progress import Milestones


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 50), st.floats(0.5, 60.0))
def test_milestones(num_steps: int, log: int, checkpoint: int, evaluation: float) -> None:
    milestones = Milestones(num_steps, log, checkpoint, evaluation)
    steps = range(1, num_steps + 1)
    judged = [step for step in steps if milestones.evaluates(step)]
    assert judged[-1] == num_steps
    assert len(judged) <= num_steps / min(evaluation, num_steps) + 2
    assert all(milestones.saves(step) for step in judged)
    assert milestones.logs(num_steps)
    gaps = [b - a for a, b in zip([0, *judged], judged, strict=False)]
    assert max(gaps) <= evaluation + 1
