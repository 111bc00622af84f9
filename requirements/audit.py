"""Ask PyPI for known weaknesses of every locked package; without a network nothing is checked, and that is said."""

from __future__ import annotations

import subprocess
import sys
import urllib.request

from tools import FOLDER, tool

PROBE = "https://pypi.org/pypi/pip/json"
FILES = ("run.txt", "dev.txt", "cuda.txt", "notify.txt")
NOTHING_CHECKED = 2


def main() -> int:
    """Audit all files; 0: nothing is known, 1: something is, 2: there is no network."""
    try:
        urllib.request.urlopen(PROBE, timeout=20).close()
    except OSError as error:
        print(f"audit: pypi.org does not answer ({error}): NOTHING WAS CHECKED; run it where there is a network")
        return NOTHING_CHECKED
    command = [tool("pip-audit"), "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    results = [subprocess.run([*command, f"--requirement={FOLDER / name}"], check=False).returncode for name in FILES]
    return int(any(results))


if __name__ == "__main__":
    sys.exit(main())
