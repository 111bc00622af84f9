"""What make.py writes into its folder: a block table, jobs, searches, a policy; and one event of every kind."""

from __future__ import annotations

from typing import Any

MODEL = """\
# As small as it can be with an ELAN block, RepConv and two levels.
name: small
image_size: 64
activation: silu
blocks:
  - {block: conv, out: 4, stride: 2}
  - {block: conv, out: 8, stride: 2}
  - {name: c2, block: elan, hidden: 4, stack: 2, taps: all, out: 8}
  - {block: down, method: pool}
  - {name: c3, block: elan, hidden: 4, stack: 2, taps: all, out: 8}
  - {block: down, method: pool}
  - {name: c4, block: elan, hidden: 4, stack: 2, taps: all, out: 8}
  - {name: p3, block: conv, from: c3, out: 8, rep: true}
  - {name: p4, block: conv, from: c4, out: 8, rep: true}
head: {from: [p3, p4]}
anchors:
  - [10, 10, 16, 16]
  - [24, 24, 36, 36]
"""
JOB: dict[str, Any] = {
    "name": "finished",
    "model": {"spec": "model.yaml"},
    "data": {"train": "shards/train", "val": "shards/val", "image_size": 64},
    "recipe": "tiny",
    "hyperparameters": {
        "lr0": 0.05,
        "warmup_min_steps": 10,
        "warmup_epochs": 0.5,
        "ema_decay": 0.98,
        "ema_ramp_steps": 10,
        "mosaic": 0.0,
        "mixup": 0.0,
        "paste_in": 0.0,
        "scale": 0.1,
        "translate": 0.05,
    },
    "epochs": 900,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "log_every_steps": 50,
    "record_samples": False,
    "cluster": {"workers": 1, "evaluation": "apart"},
    "storage": "runs",
    "checkpoint": {"every_steps": 40, "keep": 1},
    "evaluation": {"every_epochs": 300},
    "tracking": {"experiment": "older", "register_as": "shapes"},
}
UNFINISHED: dict[str, Any] = {
    "name": "unfinished",
    "epochs": 20,
    "log_every_steps": 1,
    "record_samples": True,
    "cluster": {"workers": 1},
    "checkpoint": {"every_steps": 8, "keep": 1},
    "evaluation": {"every_epochs": 4},
    "tracking": {"experiment": "older"},
}
SEARCH: dict[str, Any] = {
    "name": "population",
    "job": "job.yaml",
    "set": {
        "epochs": 8,
        "evaluation.every_epochs": 2,
        "log_every_steps": 4,
        "cluster": {"workers": 1},
        "tracking.register_as": None,
    },
    "parameters": {
        "hyperparameters.lr0": {"log_uniform": [0.005, 0.1]},
        "hyperparameters.weight_decay": {"log_uniform": [1.0e-5, 1.0e-3]},
    },
    "constraints": {"parameters": {"max": 20000}},
    "algorithm": {"name": "quasi_random"},
    "scheduler": {"name": "population", "rungs": 1, "quantile": 0.34},
    "concurrency": 1,
    "budget": {"trials": 3},
}
HALVING: dict[str, Any] = {
    "name": "halving",
    "parameters": {
        "model.hidden_width": {"choice": [1.0, 2.0, 8.0]},
        "hyperparameters.lr0": {"log_uniform": [0.005, 0.1]},
    },
    "constraints": {"parameters": {"max": 10000}},
    "objectives": [{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}],
    "scheduler": {"name": "asha", "reduction": 2, "rungs": 1},
    "budget": {"trials": 4},
}
POLICY = """\
proof:
  may_be_impossible: ["data, train", code version, package versions]
lineage: true
against_champion: {figure: AP, largest_drop: 1.0, confidence: 0.9}
class_floors: {every: 0.0}
latency: {milliseconds: 10000}
"""
# A row of every kind that `report` tells of, with the fields that the code of this commit gives it.
EVENTS: list[tuple[str | None, str, dict[str, Any]]] = [
    ("driver", "waiting", {"reason": "waiting up to 1800 s for nodes: 1 of 2 workers find room"}),
    ("driver", "starting", {"workers": 2, "settled_seconds": 1.5}),
    (None, "start", {"step": 0, "num_steps": 40, "workers": 2, "prepared_seconds": 0.2}),
    ("driver", "node_joined", {"node": "10.0.0.7", "node_id": "ab12", "offers": "4 CPUs"}),
    (None, "checkpoint", {"step": 8, "seconds": 0.1}),
    (None, "checkpoint_waited", {"step": 10, "seconds": 2.5}),
    (None, "checkpoint_skipped", {"step": 12, "reason": "the one before it is still being stored"}),
    (None, "checkpoint_failed", {"step": 16, "reason": "No space left on device"}),
    ("driver", "stalled", {"step": 17, "silence_seconds": 151.25, "reason": "nothing is heard of rank 1"}),
    ("driver", "moving", {"step": 17, "seconds": 163.5}),
    ("driver", "node_gone", {"node": "10.0.0.8", "node_id": "cd34", "reason": "the host was lost"}),
    ("driver", "failure", {"failure": "worker", "reason": "rank 1 died", "reached": 18, "again": True}),
    ("driver", "starting", {"workers": 2, "settled_seconds": 0.5}),
    (None, "checkpoint_passed_over", {"step": 16, "reason": "weights.safetensors does not match"}),
    (None, "start", {"step": 8, "num_steps": 40, "workers": 2, "prepared_seconds": 0.2}),
    (
        None,
        "regained",
        {
            "step": 19,
            "steps_redone": 10,
            "seconds_lost": 0.125,
            "first_step_seconds": 0.1,
            "seconds_since_start": 0.1,
        },
    ),
    (None, "non_finite", {"step": 20, "in_a_row": 1}),
    (None, "rolled_back", {"to_step": 19, "window": [20, 31], "reason": "loss is nan"}),
    (None, "not_rolled_back", {"window": [33, 44], "reason": "it was done once and did not help"}),
    ("driver", "evaluation_failed", {"step": 24, "reason": "OSError: gone", "again": True}),
    ("mirror", "tracking_away", {"uri": "http://mlflow:5000", "reason": "connection refused"}),
    ("mirror", "tracking_back", {"uri": "http://mlflow:5000", "seconds": 61.5}),
    (None, "storage_back", {"seconds": 7.25, "tries": 3, "reason": "503 slow down"}),
    ("driver", "failure", {"failure": "preemption", "reason": "node 10.0.0.7 goes", "reached": 30, "again": True}),
    ("driver", "resize", {"reason": "room for more", "reached": 31}),
    (None, "left", {"step": 31, "reason": "room for more"}),
    ("driver", "failed", {"reason": "more than 3 workers in a row died"}),
    (None, "start", {"step": 31, "num_steps": 40, "workers": 2, "prepared_seconds": 0.2}),
    ("driver", "stopped", {"reason": "stopped (SIGTERM) with step 33 saved"}),
]
