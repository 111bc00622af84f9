"""Write the lock files anew: every package that is installed, with the hashes of all its files.

build.txt   what builds the packages that have no wheel; it is installed before all others
cpu.txt     the CPU build of torch
cuda.txt    its CUDA build, and what that needs
run.txt     what else a training machine needs
dev.txt     what tests and linters need besides
notify.txt  what notifications through Apprise need besides; no image has it
tools.txt   what renews and audits these files

The versions are those of ``constraints.txt``. PyPI has the CUDA build of torch; the hashes of its CPU wheels come from
the folders that pip searches and from PyTorch's own index, and where neither is at hand the known ones stay.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import urllib.request
from pathlib import Path

from tools import ENVIRONMENT, FOLDER, ROOT, tool

EXTRAS = ("cluster", "diagnose", "export", "search", "server")
TOOLS = ("pip-audit==2.10.1", "uv==0.13.9")
CUDA = re.compile(r"(nvidia|cuda)-|(torch|triton)==")
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
HASH = "    --hash=sha256:"

Lock = dict[str, str]
"""Name and version -> its lines in the file."""


def compile_lock(*arguments: str) -> Lock:
    """Resolve requirements for every platform and every Python that the project allows."""
    command = [tool("uv"), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    blocks = re.split(r"\n(?=\S)", done.stdout.strip())
    return {re.split(r"[ ;\\]", block)[0]: block for block in blocks}


def cpu_lock(version: str, known: str) -> Lock:
    """Return the lock of torch's CPU build.

    Args:
        version: The version of torch.
        known: The file that is written anew.
    """
    requirement = f"torch=={version}+cpu"
    hashes = set(re.findall(r"sha256:(\w+)", known)) if f"{requirement} \\" in known else set()
    configured = [str(ENVIRONMENT / "bin" / "pip"), "config", "get", "global.find-links"]
    for folder in subprocess.run(configured, capture_output=True, text=True, check=False).stdout.split():
        for wheel in Path(folder).glob(f"torch-{version}+cpu-*.whl"):
            with wheel.open("rb") as file:
                hashes.add(hashlib.file_digest(file, "sha256").hexdigest())
    try:
        with urllib.request.urlopen(CPU_INDEX, timeout=20) as answer:
            page = answer.read().decode()
        hashes |= set(re.findall(rf"torch-{re.escape(version)}%2Bcpu-[^\"#]*#sha256=(\w+)", page))
    except OSError as error:
        print(f"{CPU_INDEX} does not answer ({error}): of the CPU wheels only known and local ones are listed")
    return {requirement: " \\\n".join([requirement, *(f"{HASH}{sha256}" for sha256 in sorted(hashes))])}


def write(name: str, lock: Lock) -> None:
    """Write one file."""
    head = f"# Written by `make lock`; {name} is installed with pip's --require-hashes."
    (FOLDER / name).write_text("\n".join([head, *(lock[key] for key in sorted(lock, key=str.lower)), ""]))
    print(f"requirements/{name}: {len(lock)} packages")


def main() -> None:
    """Write all files."""
    extras = [f"--extra={extra}" for extra in EXTRAS]
    every = compile_lock("pyproject.toml", "--constraint=constraints.txt", *extras)
    developed = compile_lock("pyproject.toml", "--constraint=constraints.txt", *extras, "--extra=dev")
    notified = compile_lock("pyproject.toml", "--constraint=constraints.txt", *extras, "--extra=notify")
    torch = next(requirement for requirement in every if requirement.startswith("torch=="))
    cpu = FOLDER / "cpu.txt"
    write("cpu.txt", cpu_lock(torch.partition("==")[2], cpu.read_text() if cpu.is_file() else ""))
    write("build.txt", {name: lines for name, lines in every.items() if name.startswith("setuptools==")})
    write("cuda.txt", {name: lines for name, lines in every.items() if CUDA.match(name)})
    write("run.txt", {name: lines for name, lines in every.items() if not CUDA.match(name)})
    write("dev.txt", {name: lines for name, lines in developed.items() if name not in every})
    write("notify.txt", {name: lines for name, lines in notified.items() if name not in every})
    (FOLDER / "tools.in").write_text("\n".join(TOOLS) + "\n")
    try:
        write("tools.txt", compile_lock("requirements/tools.in"))
    finally:
        (FOLDER / "tools.in").unlink()


if __name__ == "__main__":
    main()
