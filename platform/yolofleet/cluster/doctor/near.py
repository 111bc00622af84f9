"""Looking at a cluster from a process that connects to it: this machine's own Ray, one of its nodes, a Ray client."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

from yolofleet.cluster.doctor.authentication import REACH_SUBJECT, Address, judge_reach, judge_stranger, knock
from yolofleet.cluster.doctor.examine import Told, examine
from yolofleet.cluster.doctor.line import CLUSTER, Line, Report
from yolofleet.cluster.doctor.nodes import Silence, awaited_for
from yolofleet.cluster.doctor.versions import Installed, look_at_versions
from yolofleet.cluster.token import own_token, use_token
from yolofleet.search.connection import connected_to_ray
from yolofleet.specs.job import JobSpec

CLIENT_SECONDS = 900.0
"""More than all deadlines of the examination together."""
NOT_LOOKED_AT = "the nodes: there is no connection to them"


def examine_near(address: Address | None, job: JobSpec | None, told: Told) -> Report:
    """Connect to a cluster and look at it.

    Args:
        address: A node of it, or a Ray client's server; None starts a Ray of this machine's own for the time.
        job: What is to run there.
        told: Called with what is done next.
    """
    os.environ.pop("RAY_ADDRESS", None)
    if address is None:
        told("starting a Ray of this machine's own")
        cure = "the reason is this machine's: too little memory, no room in /tmp, or too busy (then try again)"
    else:
        refusal = judge_reach(address, knock(address, own_token()))
        if refusal is not None:
            return Report((refusal,), (NOT_LOOKED_AT,))
        use_token()
        cure = "use the cluster's image here; from outside of the cluster, its dashboard's address (http://HOST:8265)"
        os.environ["RAY_ADDRESS"] = address.text
    with ExitStack() as stack:
        try:
            stack.enter_context(connected_to_ray(dashboard=False))
        except Exception as error:  # Ray raises a new kind for each way in which versions or addresses do not fit
            reason = " ".join(str(error).split())[:400]
            return Report((Line(CLUSTER, REACH_SUBJECT, "fail", reason, cure),), (NOT_LOOKED_AT,))
        knocked = address or _own_address()
        stranger = judge_stranger(knocked, knock(knocked, None))
        wanted = look_at_versions()
        is_client = address is not None and address.scheme == "ray"
        found = _examine_there(job, wanted) if is_client else examine(job, wanted, told)
        return replace(found, lines=(stranger, *found.lines))


def _own_address() -> Address:
    import ray

    return Address.parse(ray.get_runtime_context().gcs_address)


def _examine_there(job: JobSpec | None, wanted: Installed) -> Report:
    """Look from the cluster itself: a Ray client sees only a part of what there is to see."""
    import ray

    answer = awaited_for(ray.remote(num_cpus=0)(examine).remote(job, wanted, _quiet), CLIENT_SECONDS)
    if isinstance(answer, Silence):
        cure = "install this version of yolofleet on the nodes, or look through the dashboard (http://HOST:8265)"
        return Report((Line(CLUSTER, REACH_SUBJECT, "fail", answer.reason, cure),), (NOT_LOOKED_AT,))
    assert isinstance(answer, Report)
    return answer


def _quiet(_: str) -> None:
    """There is nobody there to tell."""
