"""The tools that renew and audit the locked packages, in an environment of their own below ``.cache``."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
ENVIRONMENT = ROOT / ".cache" / "tools"


def tool(name: str) -> str:
    """Return the path of a tool; all of them are installed first, each checked against its hash."""
    locked = FOLDER / "tools.txt"
    installed = ENVIRONMENT / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != locked.read_bytes():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        if subprocess.run([*pip, "--requirement", str(locked)], check=False).returncode:
            sys.exit(f"the tools of {locked.relative_to(ROOT)} cannot be installed; there must be a network")
        installed.write_bytes(locked.read_bytes())
    return str(ENVIRONMENT / "bin" / name)
