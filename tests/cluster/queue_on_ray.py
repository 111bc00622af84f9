"""A Ray of one node of three CPUs, and what its queue answers to two drivers; written as JSON."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray

from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.admission import join_queue, ticket_of
from yolofleet.training.supervision.queue import start_queue
from yolofleet.training.supervision.turns import Turn

PATIENCE_SECONDS = 120.0


def until(action: Callable[[], Turn], condition: Callable[[Turn], bool]) -> Turn:
    """Return the first answer that meets the condition, or the last one when the patience is over."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition(turn := action()) and time.monotonic() < end:
        time.sleep(0.5)
    return turn


def main(out: Path) -> None:
    Path(os.environ["YOLOFLEET_QUOTAS"]).write_text("users: {eve: {cpus: 1}}\n")
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    found: dict[str, Any] = {}
    pair = ClusterSpec(workers=2)
    other = replace(ticket_of(pair, "other", "runs/other", most=2), ray_job="another", user="ada", waits=True)

    def ask() -> Turn:
        try:
            return ray.get(start_queue().ask.remote(other), timeout=30).turn
        except ray.exceptions.RayError:  # it is being started again
            return Turn(-1)

    with join_queue(ticket_of(pair, "first", "runs/first", most=2), lambda kind, **fields: None) as admission:
        admission.wait(None, lambda: None, lambda bundles: None)
        found["first_holds"] = admission.holds
        found["before_it_is_placed"] = ask().slots
        group = ray.util.placement_group([{"CPU": 1}] * 2)
        ray.get(group.ready())
        found["beside_it"] = until(ask, lambda turn: turn.reason is not None).reason
        ray.kill(start_queue(), no_restart=False)
        found["just_after_the_queue_was_lost"] = until(ask, lambda turn: turn.slots >= 0).reason
        found["when_it_knows_all_again"] = until(ask, lambda turn: turn.reason is not None).reason
        small = replace(other, id="small", name="small", fewest=1, most=1, priority=5)
        found["priority"] = ray.get(start_queue().ask.remote(small)).turn.slots
        ray.get(start_queue().leave.remote("small"))
        greedy = replace(other, id="greedy", user="eve")
        found["quota"] = ray.get(start_queue().ask.remote(greedy)).turn.refused
        ray.get(start_queue().leave.remote("greedy"))
        ray.util.remove_placement_group(group)
        time.sleep(3)
        found["between_two_groups"] = ask().slots
    found["when_it_has_left"] = until(ask, lambda turn: turn.slots == 2).slots
    ray.shutdown()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
