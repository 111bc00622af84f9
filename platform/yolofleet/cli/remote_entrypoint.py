"""Entry point of submitted jobs: ``python -m yolofleet.cli.remote_entrypoint train|tune|doctor [anyway]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from yolofleet import __version__
from yolofleet.cli.main import main as command_line
from yolofleet.cluster.bundle import SPEC_NAME, VERSIONS_NAME, differences, installed_versions
from yolofleet.cluster.service import ANYWAY
from yolofleet.core.errors import EXIT_DONE, EXIT_USER_ERROR


def main(arguments: list[str]) -> int:
    """Check the versions, then run the command on the spec beside."""
    kind, *options = arguments
    wanted = json.loads(Path(VERSIONS_NAME).read_text())
    if kind == "doctor":
        return _examined(wanted)
    found = differences(wanted, installed_versions())
    if found and ANYWAY not in options:
        print(
            "error: this cluster has other versions than the place that the job was sent from:\n  "
            + "\n  ".join(found)
            + "\nUse the image that belongs to this version, or send it with --any-version",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    return command_line([kind, SPEC_NAME, *(["--yes"] if kind == "tune" else [])])


def _examined(versions: dict[str, str]) -> int:
    """Look at the cluster, and leave the report in the log for the one who asked."""
    from yolofleet.cli.doctor import job_of
    from yolofleet.cluster.doctor.entry import MARK
    from yolofleet.cluster.doctor.examine import examine
    from yolofleet.cluster.doctor.node_checks import Installed
    from yolofleet.core.ray_runtime import tune_connection
    from yolofleet.specs.document import read_yaml

    document = read_yaml(Path(SPEC_NAME))
    with tune_connection(dashboard=False):
        report = examine(job_of(document) if document else None, Installed(versions, __version__), print)
    print(f"{MARK}{json.dumps(report.document())}", flush=True)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
