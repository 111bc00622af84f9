"""A rate is the time of a step, whoever measured it; a trial leaves nothing behind."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError, WorkError
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.tracking.json_lines import encode_row
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.pace import STAGES
from yolofleet.training.metrics.floors import Ceilings, stage_floors
from yolofleet.training.metrics.rate import (
    Rate,
    measure_rate,
    measured_work,
    parse_rate,
    rate_of_rows,
    rate_of_run,
    trial_job,
)

DOCUMENT: dict[str, Any] = {
    "name": "run", "model": {"name": "yolov7-tiny"}, "data": {"train": "t", "val": "v"}, "recipe": "tiny",
    "global_batch_size": 64, "micro_batch_size": 8, "cluster": {"workers": 3},
}  # fmt: skip


def job(**changes: Any) -> JobSpec:
    return JobSpec.parse(DOCUMENT | changes, source="job")


ROWS = [
    {"step": 10, "samples_per_second": 64.0, "forward_share": 0.25, "optimizer_share": 0.1, "exchange_share": 0.2},
    {"step": 20, "samples_per_second": 16.0, "forward_share": 0.5, "optimizer_share": 0.1, "exchange_share": 0.2},
]


def test_rows_count_by_the_time_that_they_took() -> None:
    rate = rate_of_rows(ROWS, {"workers": 3, "device": "a device"}, job(), 10)
    assert (rate.seconds_per_step, rate.workers, rate.micro_batches, rate.steps) == (2.5, 3, 3, 20)
    assert rate.stages == pytest.approx({"forward": (0.25 * 10 + 0.5 * 40) / 20, "optimizer": 0.25, "exchange": 0.5})
    assert rate.seconds_once == pytest.approx(0.25) and rate.exchange_seconds == pytest.approx(0.5)
    assert 3 * rate.seconds_per_micro_batch == pytest.approx(2.5 - 0.25 - 0.5)
    with pytest.raises(WorkError, match="too few steps"):
        rate_of_rows([], {}, job(), 10)


def test_a_rate_file_is_read_as_it_was_written_and_nothing_else_is() -> None:
    rate = rate_of_rows(ROWS, {"workers": 3}, job(), 10)
    assert parse_rate(json.dumps(rate.document()), "rate.json") == rate
    wrong: list[dict[str, Any]] = [
        *({"seconds_per_step": seconds} for seconds in (-1, math.nan, math.inf, "0.2", None)),
        *({"stages": stages} for stages in (None, [1], {"forward": "x"}, {"forward": -1.0}, {"forward": math.nan})),
        *({"measures": measures} for measures in (None, {"colour": 1})),
        {"workers": 1.5},
    ]
    for text in ("", "{}", "[1]", '{"format": 2}', *(json.dumps(rate.document() | change) for change in wrong)):
        with pytest.raises(UserError, match=r"rate\.json: is no rate file"):
            parse_rate(text, "rate.json")


def test_a_rate_speaks_for_the_same_micro_batches_only() -> None:
    rate = Rate(1.0, 1, 1, measures=measured_work(job()))
    rate.check_fits(job(epochs=7, global_batch_size=128, strategy="zero1"), "rate.json")
    Rate(1.0, 1, 1).check_fits(job(precision="bf16"), "--rate 1")
    for key, value, was in (("precision", "bf16", "fp32"), ("memory", "small", "fast"), ("compile", "model", "off")):
        with pytest.raises(UserError, match=rf"rate\.json: was measured for {key} {was}, not {value}"):
            rate.check_fits(job(**{key: value}), "rate.json")


def test_a_run_tells_its_rate_with_all_that_lies_between_steps(tmp_path: Path) -> None:
    def at(second: float, **fields: Any) -> bytes:
        return encode_row({"time": datetime.fromtimestamp(1e6 + second, UTC).isoformat(), **fields})

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text(write_yaml(job().document()))
    starts = [at(0, kind="start", workers=8), at(50, kind="start", workers=2)]
    (folder / "events.jsonl").write_bytes(b"".join(starts))
    rows = [at(40, step=5, samples_per_second=1.0), at(60, step=10, samples_per_second=64.0)]
    rows += [at(80, step=20, samples_per_second=64.0), at(90, step=20, val_AP=0.5), at(100, **ROWS[0] | {"step": 30})]
    (folder / "metrics.jsonl").write_bytes(b"".join(rows))
    rate = rate_of_run(RunDirectory.open(tmp_path, "run"))
    assert (rate.seconds_per_step, rate.workers, rate.micro_batches, rate.covers_evaluation) == (2.0, 2, 4, True)
    (folder / "metrics.jsonl").write_bytes(b"".join(rows[:2]))
    with pytest.raises(UserError, match="too few rows"):
        rate_of_run(RunDirectory.open(tmp_path, "run"))


def test_a_trial_is_the_share_of_the_busiest_worker() -> None:
    trial = trial_job(job(batch_norm_workers=1, stop={"patience": 1, "max_hours": 1e-9}), "/tmp/x")
    assert (trial.global_batch_size, trial.cluster.most_workers, trial.storage) == (24, 1, "/tmp/x")
    assert trial.stop is None, "it would end the trial"
    assert trial.notify is None and trial.tracking.uri is None and measured_work(trial) == measured_work(job())


@pytest.mark.slow
def test_a_trial_leaves_nothing_behind(
    small_job: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    rate = measure_rate(small_job(cluster={"workers": 2}, tracking={"when_away": "spool"}), 20)
    assert rate.steps == 10 and rate.micro_batches == 1 and rate.device
    assert 0 < sum(rate.stages.values()) <= rate.seconds_per_step * 1.001
    assert all(rate.stages[stage] > 0 for stage in ("data_wait", "copy", "forward", "loss", "backward", "optimizer"))
    assert not (tmp_path / "runs").exists()
    assert not [path for path in (tmp_path / "temporary").iterdir() if "trial" in path.name]


def test_floors_grow_with_the_work_and_shrink_with_the_device() -> None:
    def floors(ceilings: Ceilings, **changes: Any) -> dict[str, float]:
        settings = {"num_classes": 80, "image_size": 320, "micro_batch_size": 4, "micro_batches": 2} | changes
        return stage_floors(wire(resolve("yolov7-tiny")), ceilings, **settings)

    slow = Ceilings(product_flops=1e10, copy_bytes=1e12)
    base = floors(slow)
    # tests/golden/models/counts.json: 13.7007 GFLOPs at 640 px, a quarter of it at 320; eight images.
    assert base["forward"] == pytest.approx(13.7007e9 / 4 * 8 / 1e10, rel=1e-4)
    assert base["backward"] == pytest.approx(2 * base["forward"])
    assert base["data_wait"] == base["exchange"] == base["checkpoint"] == 0 and set(base) == set(STAGES)
    twice = floors(slow, micro_batches=4)
    assert twice["forward"] == pytest.approx(2 * base["forward"]) and twice["optimizer"] == base["optimizer"]
    bound_by_memory = floors(Ceilings(product_flops=1e18, copy_bytes=1e9))
    assert bound_by_memory["forward"] > floors(Ceilings(1e18, 2e9))["forward"] > 0
    assert floors(slow, moments=2)["optimizer"] > base["optimizer"]
