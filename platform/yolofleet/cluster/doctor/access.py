"""Two ways to examine a cluster: from a process that connects to it, or through its Jobs API.

By connection the examination runs here (this machine's own Ray, a node of the cluster) or in a task on the cluster (a
Ray client). Through the Jobs API the doctor is sent as a job, and its report comes back in the job's log: from outside
of a cluster only its dashboard can be reached.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import ExitStack
from dataclasses import replace

from yolofleet.cluster.bundle import Bundle
from yolofleet.cluster.doctor.authentication import RAY_SUBJECT, Address, check_access, check_authentication, probe
from yolofleet.cluster.doctor.examine import Notify, examine
from yolofleet.cluster.doctor.finding import CLUSTER, Finding, Report
from yolofleet.cluster.doctor.node_checks import ClockOffset, Installed, check_clock, probe_versions
from yolofleet.cluster.doctor.nodes import NoAnswer, await_answers
from yolofleet.cluster.sent_job import SentJob
from yolofleet.cluster.service import JobService
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import environment_variable, own_token, tune_connection, use_token
from yolofleet.core.text import one_line
from yolofleet.specs.job import JobSpec

PATIENCE_SECONDS = 900.0
"""More than all deadlines of an examination together."""
NOT_EXAMINED = "the nodes: they were not reached"
JOB_SUBJECT = "doctor's job"
REPORT_PREFIX = "yolofleet-doctor-report "
"""The line of the log that holds the report begins with it."""
HEAD = "head (from here)"
"""The node of the finding on the head's clock, compared with the clock of this machine."""
SHOWN_LINES = 3


def examine_by_connection(address: Address | None, job: JobSpec | None, notify: Notify) -> Report:
    """Connect to a cluster and examine it.

    Args:
        address: A node of it, or a Ray client's server; None starts a Ray of this machine's own for the time.
        job: What is to run there.
        notify: Called with the name of the next step.
    """
    if address is None:
        notify("starting a Ray on this machine")
        cure = "this machine has too little memory, no room in /tmp, or is too busy (then try again)"
    else:
        refusal = check_access(address, probe(address, own_token()))
        if refusal is not None:
            return Report((refusal,), (NOT_EXAMINED,))
        use_token()
        cure = "use the cluster's image here; from outside of the cluster, its dashboard's address (http://HOST:8265)"
    with ExitStack() as stack:
        stack.enter_context(environment_variable("RAY_ADDRESS", None if address is None else address.text))
        try:
            stack.enter_context(tune_connection(dashboard=False))
        except Exception as error:  # Ray raises a new kind for each way in which versions or addresses do not fit
            return Report((Finding(CLUSTER, RAY_SUBJECT, "fail", one_line(error, 400), cure),), (NOT_EXAMINED,))
        import ray

        probed = address or Address.parse(ray.get_runtime_context().gcs_address)
        authentication = check_authentication(probed, probe(probed, None))
        expected = probe_versions()
        is_client = address is not None and address.scheme == "ray"
        report = _examine_remotely(job, expected) if is_client else examine(job, expected, notify)
        return replace(report, findings=(authentication, *report.findings))


def _examine_remotely(job: JobSpec | None, expected: Installed) -> Report:
    """Examine from a task on the cluster: a Ray client sees only a part of the cluster's state."""
    import ray

    reference = ray.remote(num_cpus=0)(examine).remote(job, expected, _ignore)
    (answer,) = await_answers([reference], PATIENCE_SECONDS)
    if isinstance(answer, NoAnswer):
        cure = "install this version of yolofleet on the nodes, or look through the dashboard (http://HOST:8265)"
        return Report((Finding(CLUSTER, RAY_SUBJECT, "fail", answer.reason, cure),), (NOT_EXAMINED,))
    assert isinstance(answer, Report)
    return answer


def _ignore(_: str) -> None:
    """Take a notification of a task on the cluster, where no one reads it."""


def make_bundle(document: dict[str, object] | None) -> Bundle:
    """Return the doctor as something to send; its random name lets several users examine a cluster at once."""
    return Bundle("doctor", f"doctor-{secrets.token_hex(4)}", document or {})


def examine_by_jobs_api(address: Address, bundle: Bundle, notify: Notify) -> Report:
    """Send the doctor as a job to the cluster at a dashboard's address, and return its report."""
    refusal = check_access(address, probe(address, own_token()))
    if refusal is not None:
        return Report((refusal,), (NOT_EXAMINED,))
    findings = [check_authentication(address, probe(address, None))]
    try:
        service = JobService(address.text)
        before = time.time()
        job, _ = service.send(bundle, any_version=True)
        after = time.time()
    except (UserError, WorkError) as error:
        cure = "see that the dashboard's agent runs on the head (ray[default]) and that it takes jobs: yolofleet submit"
        return Report((*findings, Finding(CLUSTER, JOB_SUBJECT, "fail", str(error), cure)), (NOT_EXAMINED,))
    if job.began is not None:
        findings.append(check_clock(HEAD, ClockOffset.from_moment(before, job.began, after)))
    notify(f"sent {job.id}")
    try:
        found = _await_report(service, job)
    finally:
        service.forget(job)
    if isinstance(found, Finding):
        return Report((*findings, found), (NOT_EXAMINED,))
    return replace(found, findings=(*findings, *found.findings))


def _await_report(service: JobService, job: SentJob) -> Report | Finding:
    """Return the report, or the finding that says why there is none."""
    try:
        job = service.await_end(job, PATIENCE_SECONDS)
    except (UserError, WorkError) as error:
        return Finding(CLUSTER, JOB_SUBJECT, "fail", f"the connection was lost: {error}", "try again")
    if not job.has_ended:
        cure = "see what it waits for: yolofleet jobs list, and Ray's dashboard"
        return Finding(CLUSTER, JOB_SUBJECT, "fail", f"is {job.status.lower()} after {PATIENCE_SECONDS:g} s", cure)
    return parse_report(service.logs(job), job.message)


def parse_report(log: str, message: str) -> Report | Finding:
    """Return the report that a log holds, or the finding that says why there is none.

    Args:
        log: What the job has printed.
        message: The cluster's message on how the job ended.
    """
    lines = log.splitlines()
    for line in reversed(lines):
        if line.startswith(REPORT_PREFIX):
            return Report.from_document(json.loads(line.removeprefix(REPORT_PREFIX)))
    last = " / ".join(line.strip() for line in lines[-SHOWN_LINES:] if line.strip()) or message
    cure = "use the image of this version, or install the packages of requirements/run.txt on the nodes"
    return Finding(CLUSTER, JOB_SUBJECT, "fail", f"ended without a report: {last[-400:]}", cure)
