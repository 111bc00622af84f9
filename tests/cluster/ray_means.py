"""What Ray Train's own means do where the driver's watches do something; facts as JSON on the last line of stdout.

    python ray_means.py FACT FOLDER

Each function is one run of workers that Ray Train alone looks after, with its public settings only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

SHORT = 5.0
"""Seconds after which Ray may call a worker silent, here."""
PATIENCE = 60.0
"""Seconds until a group is left alone that Ray does not end."""


class Unconnected(TorchConfig):  # type: ignore[misc]
    """Workers that start and never find each other."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls before training."""

        class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                raise RuntimeError("no route between the workers")

        return Backend


def fit(
    worker: Callable[[dict[str, Any]], None],
    folder: Path,
    workers: int | tuple[int, int] = 2,
    torch: TorchConfig | None = None,
    **config: Any,
) -> str:
    """Run workers until Ray ends them or patience does; returns how it ended."""
    trainer = TorchTrainer(
        worker,
        train_loop_config={"folder": str(folder), **config},
        scaling_config=ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=1.0
        ),
        torch_config=torch or TorchConfig(),
        run_config=RunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=0)),
    )
    ended: list[str] = []

    def run() -> None:
        try:
            trainer.fit()
            ended.append("done")
        except Exception as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE + 30)
    return ended[0] if ended else "never"


def failed_start(folder: Path) -> dict[str, Any]:
    """A start that fails half-way: what of its room is back after a while."""
    before = ray.available_resources().get("CPU", 0)
    ended = fit(_end_at_once, folder, torch=Unconnected())
    end = time.monotonic() + PATIENCE
    while ray.available_resources().get("CPU", 0) < before and time.monotonic() < end:
        time.sleep(0.5)
    return {"ended": ended, "room_is_back": ray.available_resources().get("CPU", 0) == before}


def _end_at_once(config: dict[str, Any]) -> None:
    """Train nothing."""


def silent_process(folder: Path) -> dict[str, Any]:
    """A worker whose process stands still: how the group ended."""
    return {"ended": fit(_fall_silent, folder, whole_process=True)}


def silent_training(folder: Path) -> dict[str, Any]:
    """A worker whose training stands still, as in an exchange whose other side is gone: how the group ended."""
    return {"ended": fit(_fall_silent, folder)}


def _fall_silent(config: dict[str, Any]) -> None:
    if ray.train.get_context().get_world_rank() == 1:
        if config.get("whole_process"):
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(3600)


def growth(folder: Path) -> dict[str, Any]:
    """A group for which a second node comes: how many workers it had at the end, and how many steps it did twice."""
    ended = fit(_count_steps, folder, workers=(1, 2))
    lines = [line.split() for line in (folder / "steps").read_text().splitlines()]
    repeated = sum(count - 1 for count in Counter(step for step, _ in lines).values())
    return {"ended": ended, "workers": int(lines[-1][1]), "steps_done_twice": repeated}


def _count_steps(config: dict[str, Any]) -> None:
    folder, context = Path(config["folder"]), ray.train.get_context()
    begun, step = ray.train.get_checkpoint(), 0
    if begun is not None:
        with begun.as_directory() as kept:
            step = int((Path(kept) / "step").read_text())
    end, first = time.monotonic() + PATIENCE, step
    while (context.get_world_size() < 2 or step < first + 60) and time.monotonic() < end:
        time.sleep(0.1)
        step += 1
        if context.get_world_rank() == 0:
            with (folder / "steps").open("a") as steps:
                steps.write(f"{step} {context.get_world_size()}\n")
        if step % 500 == 0:
            with tempfile.TemporaryDirectory() as made:
                (Path(made) / "step").write_text(str(step))
                ray.train.report({}, checkpoint=Checkpoint.from_directory(made))


def notice(folder: Path) -> dict[str, Any]:
    """Nodes that are announced to go: whether the workers learn of it, and what asking in each step costs."""
    fit(_ask_in_each_step, folder)
    return dict(json.loads((folder / "notice").read_text()))


def _ask_in_each_step(config: dict[str, Any]) -> None:
    folder = Path(config["folder"])
    (folder / "asking").touch()
    calls, asking_seconds, info = 0, 0.0, None
    # A number, for each worker must ask equally often; twelve times the watch's interval, well before the node goes.
    while info is None and calls < 300:
        time.sleep(0.04)
        began = time.monotonic()
        info = ray.train.get_preemption_info()
        asking_seconds += time.monotonic() - began
        calls += 1
    found = {"told": info is not None, "milliseconds_a_step": 1000 * asking_seconds / calls}
    if ray.train.get_context().get_world_rank() == 0:
        (folder / "notice").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(SHORT)
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
    ray.init(address=os.environ["RAY_ADDRESS"], logging_level="error", log_to_driver=False)
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)  # a group that never ends would hold the interpreter
