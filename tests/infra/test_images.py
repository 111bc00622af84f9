"""The Dockerfile without an engine: pinned as ``make install`` is, small, unprivileged, and healthy by what runs."""

from __future__ import annotations

import http.server
import re
import runpy
import sys
import threading
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
INSTRUCTIONS = {
    "FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "CMD",
}  # fmt: skip
BROKEN = {
    "an image without a version": ("python:3.11.14-slim-bookworm", "python"),
    "the newest image": ("python:3.11.14-slim-bookworm", "python:latest"),
    "an instruction that is none": ("WORKDIR /src", "WORKDRI /src"),
    "root": ("USER 10001:10001", "USER root"),
    "no user": ("USER 10001:10001\n", ""),
    "no health check": ("HEALTHCHECK", "# HEALTHCHECK"),
    "packages without their hashes": (" --require-hashes", ""),
    "packages that bring others": ("install --no-deps --no-build-isolation .", "install ."),
    "package lists that stay": (" \\\n    && rm -rf /var/lib/apt/lists/*", ""),
    "recommended packages": (" --no-install-recommends", ""),
    "the whole folder": ("COPY platform ./platform", "COPY . ."),
    "a secret": ("LANG=C.UTF-8", "LANG=C.UTF-8 AWS_SECRET_ACCESS_KEY=x"),
    "a stage that is not there": ("--from=build-cuda", "--from=build-gpu"),
    "a file that is not there": ("infra/docker/healthy.py", "infra/docker/health.py"),
    "a shell that goes on after a failure": ("&& pip check", "; pip check"),
    "no ssh, which Ray's launcher calls on the head": (" openssh-client", ""),
    "no InfiniBand": (" rdma-core", ""),
    "an archive that nobody checks": ("sha256sum --check /tmp/efa.sha256 \\\n    && ", ""),
    "root at the end": ("USER 10001:10001\nENV FI_PROVIDER", "ENV FI_PROVIDER"),
    "no notice of spot machines": ("infra/aws/spot_notice.py /usr/local/bin/spot-notice", "infra/docker/healthy.py /x"),
    "no image for CPUs": ("FROM runtime AS cpu", "FROM runtime AS small"),
}  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in whole.splitlines()]


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    found = []
    stages: dict[str, str] = {}
    for name, rest in instructions(text):
        if name not in INSTRUCTIONS:
            found.append(f"{name} is no instruction that is used here")
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            if image not in stages and not re.search(r":[0-9]+\.[0-9]+\.[0-9]+[-.\w]*$", image):
                found.append(f"{image} is not pinned")
            stages[stage] = image
        if name == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            origin = re.search(r"--from=(\S+)", rest)
            if origin and origin[1] not in stages:
                found.append(f"{origin[1]} is no stage")
            if not origin and any(source == "." or not (ROOT / source).exists() for source in sources):
                found.append(f"COPY {rest}")
        if name == "RUN":
            found += _run_problems(rest)
        if name == "ENV" and re.search(r"SECRET|PASSWORD|TOKEN=", rest):
            found.append("a secret in the image")
    for target in ("cpu", "cuda", "cuda-efa"):
        if target not in stages:
            found.append(f"no target {target}")
            continue
        lineage = [target]
        while lineage[-1] in stages:
            lineage.append(stages[lineage[-1]])
        of_target = _instructions_of(text, lineage)
        users = [rest for name, rest in of_target if name == "USER"]
        if not users or not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", users[-1]):
            found.append(f"{target} runs as root")
        if not any(name == "HEALTHCHECK" for name, _ in of_target):
            found.append(f"{target} has no health check")
        packages = {word for name, rest in of_target if name == "RUN" for word in rest.split()}
        needed = {"openssh-client", "rsync", "wget"} | (
            {"rdma-core", "ibverbs-providers"} if target != "cpu" else set()
        )
        if not needed <= packages:
            found.append(f"{target} lacks {needed - packages}")
        if not any(name == "COPY" and "/usr/local/bin/spot-notice" in rest for name, rest in of_target):
            found.append(f"{target} does not watch for the notice of a spot machine")
    return found


def _run_problems(command: str) -> list[str]:
    found = []
    if ";" in command or "| " in command:
        found.append("goes on after a failure")
    if "wget" in command and "install " not in command.partition("wget")[0] and "sha256sum --check" not in command:
        found.append("downloads what nobody checks")
    if "apt-get install" in command and (
        "--no-install-recommends" not in command or "rm -rf /var/lib/apt" not in command
    ):
        found.append("apt leaves more than is needed")
    for install in re.findall(r"pip install (.*?)(?:&&|$)", command):
        if "--no-deps" not in install or "--no-build-isolation" not in install:
            found.append(f"may bring packages that nobody listed: {install}")
        if install.split()[-1] != "." and "--require-hashes" not in install:
            found.append(f"hashes are not checked: {install}")
    return found


def _instructions_of(text: str, stages: list[str]) -> list[tuple[str, str]]:
    kept, current = [], ""
    for name, rest in instructions(text):
        current = rest.partition(" AS ")[2] if name == "FROM" else current
        if current in stages:
            kept.append((name, rest))
    return kept


def test_the_dockerfile_holds_what_it_promises() -> None:
    assert problems(DOCKERFILE.read_text()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_the_lint_finds_what_is_broken(name: str) -> None:
    before, after = BROKEN[name]
    text = DOCKERFILE.read_text()
    assert before in text
    assert problems(text.replace(before, after)), name


def test_the_images_hold_what_make_installs() -> None:
    """The image for CPUs holds all but the tools of tests, the one for GPUs what CUDA needs besides."""
    [cpu, cuda] = re.findall(r"venv /opt/yolofleet(.*?)pip check", DOCKERFILE.read_text(), re.DOTALL)
    assert re.findall(r"requirements/(\w+)", cpu) == ["build", "cpu", "run"]
    assert re.findall(r"requirements/(\w+)", cuda) == ["build", "cuda", "run"]
    makefile = (ROOT / "Makefile").read_text()
    assert {*re.findall(r"call install_locked,(\w+)", makefile)} == {"build", "cpu", "cuda", "run", "dev"}
    assert "--require-hashes" in makefile.partition("install_locked = ")[2].splitlines()[0]


def test_the_release_builds_what_is_there() -> None:
    """The workflow knows the targets of the Dockerfile and of the Makefile, and runs nobody else's actions."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
    stages = {rest.partition(" AS ")[2] for name, rest in instructions(DOCKERFILE.read_text()) if name == "FROM"}
    assert {*workflow["jobs"]["images"]["strategy"]["matrix"]["target"]} <= stages
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert not any("uses" in step for step in steps)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [target for step in steps for target in re.findall(r"^make ([a-z-]+)", step["run"])]
    assert made and {*made} <= {*targets}


def test_only_what_is_copied_is_sent_to_the_engine() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions(DOCKERFILE.read_text())
        if name == "COPY" and "--from" not in rest
        for source in [part.removeprefix("./") for part in rest.split() if not part.startswith("--")][:-1]
    }
    assert copied == allowed
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_tells_what_answers(status: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}/health"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    if status is None:
        server.shutdown()
        server.server_close()
    monkeypatch.setattr(sys, "argv", ["healthy", url])
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "infra" / "docker" / "healthy.py"), run_name="__main__")
        assert ended.value.code == code
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
