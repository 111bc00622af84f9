"""Batch norm over two workers is batch norm of one worker with twice the micro-batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.batch_norm_worker import NUM_PASSES, images_of, network, passed
from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.update import MicroBatchStatistics
from yolofleet.training.loop.worker_group import WorkerGroup, assign_micro_batches
from yolofleet.training.supervision.worker import run_in_process


def test_two_processes_compute_what_one_with_the_doubled_micro_batch_does(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("batch_norm_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, str(worker), str(rank), str(tmp_path)], env=environment, stderr=-1, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, output = process.communicate(timeout=150)
        assert process.returncode == 0, output[-3000:]
    halves = [safetensors.torch.load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2)]

    model = network()
    whole = passed(model, MicroBatchStatistics(model), WorkerGroup(), whole=True)
    by_half = [f"{kind}.{number}" for kind in ("out", "input") for number in range(NUM_PASSES)]
    for name, expected in whole.items():
        parts = [half[name] for half in halves]
        scale = float(expected.abs().max())
        for found in [torch.cat(parts)] if name in by_half else parts:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale, msg=name)
    assert {f"state.{name}" for name in model.state_dict()} <= {*whole}
    with torch.no_grad():
        expected = model.eval()(images_of(0))
    for half in halves:
        torch.testing.assert_close(half["evaluated"], expected, rtol=1e-9, atol=1e-9)


def test_statistics_of_a_half_are_others() -> None:
    alone, together = network(), network()
    half = alone(images_of(0)[:4])
    assert (half - together(images_of(0))[:4]).abs().max() > 0.1


@pytest.mark.parametrize("team_size", [1, 2, 3])
@pytest.mark.parametrize("num_teams", [1, 2, 5])
@pytest.mark.parametrize("num_team_workers", [1, 2, 3, 5])
def test_a_team_holds_the_same_micro_batches_at_any_number_of_workers(
    team_size: int, num_teams: int, num_team_workers: int
) -> None:
    num_micro_batches, world_size = team_size * num_teams, team_size * num_team_workers
    if world_size > num_micro_batches:
        with pytest.raises(ValueError, match="cannot own"):
            assign_micro_batches(num_micro_batches, 0, world_size, team_size)
        return
    owned = [assign_micro_batches(num_micro_batches, rank, world_size, team_size) for rank in range(world_size)]
    together = set()
    for first in range(0, world_size, team_size):
        members = owned[first : first + team_size]
        assert len({len(member) for member in members}) == 1
        together |= {*zip(*members, strict=True)}
    teams = [range(first, first + team_size) for first in range(0, num_micro_batches, team_size)]
    assert together == {tuple(team) for team in teams}
    assert sorted(index for member in owned for index in member) == list(range(num_micro_batches))


def test_teams_that_do_not_come_out_even_are_refused(small_job: Callable[..., JobSpec]) -> None:
    four = {"global_batch_size": 16, "batch_norm_workers": 2}  # four micro-batches
    assert small_job(**four, cluster={"workers": 4}).batch_norm_workers == 2
    with pytest.raises(UserError, match="no divisor of 1 worker; use a fixed multiple of it"):
        small_job(**four)
    with pytest.raises(UserError, match="no divisor of 3 workers"):
        small_job(**four, cluster={"workers": [2, 4]})
    with pytest.raises(UserError, match="no divisor of 4 micro-batches of a global batch"):
        small_job(**four | {"batch_norm_workers": 3}, cluster={"workers": 3})
    with pytest.raises(UserError, match=r"1 process was started: .*cluster.workers: 2"):
        run_in_process(small_job(**four, cluster={"workers": 2}))
    plain = small_job()
    assert "batch_norm_workers" not in plain.computation()
    assert small_job(**four, cluster={"workers": 2}).computation()["batch_norm_workers"] == 2
