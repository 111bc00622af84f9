"""Entry point of submitted jobs: ``python -m yolofleet.cli.remote_entrypoint train|tune|command|doctor [anyway]``.

It runs on the cluster, in the folder that the bundle was unpacked into: the spec and the sender's versions lie there.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from yolofleet import __version__
from yolofleet.cli.main import main as run_command
from yolofleet.cluster.bundle import SPEC_NAME, VERSIONS_NAME, differences, installed_versions, sent_command
from yolofleet.cluster.service import ANYWAY
from yolofleet.core.errors import EXIT_DONE, EXIT_USER_ERROR
from yolofleet.core.redaction import redact_values
from yolofleet.core.terminal import guard_output, note, show
from yolofleet.specs.yaml_document import read_yaml


def main(arguments: list[str]) -> int:
    """Check the versions, then run the command on the spec."""
    guard_output()
    kind, *options = arguments
    expected = json.loads(Path(VERSIONS_NAME).read_text())
    if kind == "doctor":
        return _run_doctor(expected)
    differing = differences(expected, installed_versions())
    if differing and ANYWAY not in options:
        note(
            "error: this cluster has other versions than the machine that the job was sent from:\n  "
            + "\n  ".join(differing)
            + "\nUse the image that belongs to this version, or send it with --any-version"
        )
        return EXIT_USER_ERROR
    if kind == "command":
        return _run_sent_command()
    return run_command([kind, SPEC_NAME, *(["--yes"] if kind == "tune" else [])])


def _run_sent_command() -> int:
    """Run the command whose words were sent; its results lie in a storage afterwards, its exit code is the job's."""
    words = [str(word) for word in read_yaml(Path(SPEC_NAME))["arguments"]]
    if sent_command(words) is None:
        note(f"error: {' '.join(words[:2])}: is not a command that can be sent")
        return EXIT_USER_ERROR
    note(f"yolofleet {shlex.join(words)}")
    return run_command(words)


def _run_doctor(versions: dict[str, str]) -> int:
    """Examine the cluster, and print the report into the log, where the sender reads it."""
    from yolofleet.cli.doctor import job_of
    from yolofleet.cluster.doctor.access import REPORT_PREFIX
    from yolofleet.cluster.doctor.examine import examine
    from yolofleet.cluster.doctor.node_checks import Installed
    from yolofleet.core.ray_runtime import tune_connection

    document = read_yaml(Path(SPEC_NAME))
    with tune_connection(dashboard=False):
        report = examine(job_of(document) if document else None, Installed(versions, __version__), show)
    show(f"{REPORT_PREFIX}{json.dumps(redact_values(report.document()))}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
