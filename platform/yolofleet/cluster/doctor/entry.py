"""Looking at a cluster through its Jobs API: the doctor goes there as a job, its report comes back in the log.

Looking at a cluster from a process that connects to it: this machine's own Ray, one of its nodes, a Ray client.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import ExitStack
from dataclasses import replace

from yolofleet.cluster.bundle import Bundle
from yolofleet.cluster.doctor.authentication import REACH_SUBJECT, Address, judge_reach, judge_stranger, knock
from yolofleet.cluster.doctor.examine import Told, examine
from yolofleet.cluster.doctor.finding import CLUSTER, Line, Report
from yolofleet.cluster.doctor.node_checks import ClockOffset, Installed, judge_clock, look_at_versions
from yolofleet.cluster.doctor.nodes import Silence, awaited_for
from yolofleet.cluster.service import JobService, SentJob
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import own_token, tune_connection, use_token
from yolofleet.specs.job import JobSpec

CLIENT_SECONDS = 900.0
"""More than all deadlines of the examination together."""
NOT_CONNECTED = "the nodes: there is no connection to them"


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
            return Report((refusal,), (NOT_CONNECTED,))
        use_token()
        cure = "use the cluster's image here; from outside of the cluster, its dashboard's address (http://HOST:8265)"
        os.environ["RAY_ADDRESS"] = address.text
    with ExitStack() as stack:
        try:
            stack.enter_context(tune_connection(dashboard=False))
        except Exception as error:  # Ray raises a new kind for each way in which versions or addresses do not fit
            reason = " ".join(str(error).split())[:400]
            return Report((Line(CLUSTER, REACH_SUBJECT, "fail", reason, cure),), (NOT_CONNECTED,))
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
        return Report((Line(CLUSTER, REACH_SUBJECT, "fail", answer.reason, cure),), (NOT_CONNECTED,))
    assert isinstance(answer, Report)
    return answer


def _quiet(_: str) -> None:
    """There is nobody there to tell."""


SUBJECT = "doctor's job"
MARK = "yolofleet-doctor-report "
"""What the line of the log begins with that holds the report."""
PATIENCE_SECONDS = 900.0
"""More than all deadlines of the examination together."""
POLL_SECONDS = 1.0
CLOCK_PLACE = "head (from here)"
SHOWN_LINES = 3
NOT_LOOKED_AT = "the nodes: the doctor did not get to them"


def bundle_for(document: dict[str, object] | None) -> Bundle:
    """Return the doctor as something to send; a name of its own lets several look at once."""
    return Bundle("doctor", f"doctor-{secrets.token_hex(4)}", document or {})


def examine_afar(address: Address, bundle: Bundle, told: Told, *, patience_seconds: float = PATIENCE_SECONDS) -> Report:
    """Send the doctor to the cluster at a dashboard's address, and return what it has found.

    Args:
        address: Where the dashboard answers.
        bundle: What `bundle_for` has made.
        told: Called with what is done next.
        patience_seconds: How long it may take in all.
    """
    refusal = judge_reach(address, knock(address, own_token()))
    if refusal is not None:
        return Report((refusal,), (NOT_LOOKED_AT,))
    lines = [judge_stranger(address, knock(address, None))]
    try:
        service = JobService(address.text)
        before = time.time()
        job, _ = service.send(bundle, any_version=True)
        after = time.time()
    except (UserError, WorkError) as error:
        cure = "see that the dashboard's agent runs on the head (ray[default]) and that it takes jobs: yolofleet submit"
        return Report((*lines, Line(CLUSTER, SUBJECT, "fail", str(error), cure)), (NOT_LOOKED_AT,))
    if job.began is not None:
        lines.append(judge_clock(CLOCK_PLACE, ClockOffset.from_moment(before, job.began, after)))
    told(f"sent {job.id}")
    try:
        return _with(lines, _awaited(service, job, patience_seconds))
    finally:
        service.forget(job)


def _awaited(service: JobService, job: SentJob, patience_seconds: float) -> Report | Line:
    """Return the report, or why there is none."""
    end = time.monotonic() + patience_seconds
    while not job.has_ended and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        try:
            job = service.job(job.id)
        except (UserError, WorkError) as error:
            return Line(CLUSTER, SUBJECT, "fail", f"the connection was lost: {error}", "try again")
    if not job.has_ended:
        cure = "see what keeps it: yolofleet jobs list, and Ray's dashboard"
        return Line(CLUSTER, SUBJECT, "fail", f"is {job.status.lower()} after {patience_seconds:g} s", cure)
    return reported(service.logs(job), job.message)


def reported(log: str, message: str) -> Report | Line:
    """Return the report that a log holds, or what kept the job from one.

    Args:
        log: What the job has printed.
        message: What the cluster says of how it ended.
    """
    lines = log.splitlines()
    for line in reversed(lines):
        if line.startswith(MARK):
            return Report.from_document(json.loads(line.removeprefix(MARK)))
    last = " / ".join(line.strip() for line in lines[-SHOWN_LINES:] if line.strip()) or message
    cure = "use the image of this version, or install the packages of constraints.txt on the nodes"
    return Line(CLUSTER, SUBJECT, "fail", f"ended without a report: {last[-400:]}", cure)


def _with(lines: list[Line], found: Report | Line) -> Report:
    if isinstance(found, Line):
        return Report((*lines, found), (NOT_LOOKED_AT,))
    return replace(found, lines=(*lines, *found.lines))
