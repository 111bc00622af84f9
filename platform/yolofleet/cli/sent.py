"""What a cluster runs for a job that was sent to it: ``python -m yolofleet.cli.sent train|tune [anyway]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from yolofleet.cli.main import main as command_line
from yolofleet.cluster.bundle import SPEC_NAME, VERSIONS_NAME
from yolofleet.cluster.service import ANYWAY
from yolofleet.cluster.versions import differences, installed_versions
from yolofleet.errors import EXIT_USER_ERROR


def main(arguments: list[str]) -> int:
    """Check the versions, then run the command on the spec beside."""
    kind, *options = arguments
    found = differences(json.loads(Path(VERSIONS_NAME).read_text()), installed_versions())
    if found and ANYWAY not in options:
        print(
            "error: this cluster has other versions than the place that the job was sent from:\n  "
            + "\n  ".join(found)
            + "\nUse the image that belongs to this version, or send it with --any-version",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    return command_line([kind, SPEC_NAME, *(["--yes"] if kind == "tune" else [])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
