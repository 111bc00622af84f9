"""The wheel, and what its base does without any extra: it predicts, and trains in one process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from system.pages import ROOT
from system.shell import Shell, write_job
from yolofleet.core.errors import EXTRAS

pytestmark = pytest.mark.system
WITH_THEM = ("grpc", "matplotlib", "pandas", "pyarrow", "pywt", "requests", "scipy", "sklearn")
"""What the extras' packages bring with them: the base must not lean on it."""
HIDING = f"""
import sys
from importlib.machinery import PathFinder
HIDDEN = {(*EXTRAS, *WITH_THEM)!r}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
SMALL = {"cluster__workers": 1, "epochs": 1.25, "recipe": "tiny"}
"""Ten steps of eight images, of 64."""


@pytest.fixture
def base(tmp_path: Path) -> Shell:
    """A shell in which no package of an extra can be imported."""
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "sitecustomize.py").write_text(HIDING)
    return Shell(tmp_path, {"PYTHONPATH": f"{tmp_path / 'hiding'}:{ROOT / 'platform'}"})


@pytest.mark.slow
def test_the_base_trains_and_predicts(base: Shell, drawn: Path) -> None:
    job = write_job(base.folder, drawn, **SMALL)
    done = base.run("train", str(job), "--launcher", "process")
    assert done.returncode == 0, done.stderr
    assert "training 10 steps" in done.stderr and "MLflow" not in done.stderr
    assert "not used (not installed: pip install 'yolofleet[server]')" in done.stdout
    base.succeed("predict", "runs/small", str(drawn / "images/images/000001.jpg"), "--out", "found")
    base.succeed("evaluate", "runs/small", str(drawn / "shards/val"))
    base.succeed("export", "runs/small", "x.safetensors", "--format", "safetensors")
    base.succeed("report", "runs/small")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["train", "job.yaml"], "cluster"),
        (["train", "job.yaml", "--launcher", "process", "tracking.register_as=shapes"], "server"),
        (["train", "job.yaml", "--launcher", "process", "tracking.uri=sqlite:///x.db"], "server"),
        (["registry", "list", "--tracking-uri", "http://127.0.0.1:9"], "server"),
        (["registry", "show", "shapes@champion"], "server"),
        (["jobs", "list"], "cluster"),
        (["predict", "models:/shapes@champion", "IMAGE", "--tracking-uri", "http://127.0.0.1:9"], "server"),
        (["data", "check", "INSTANCES", "IMAGES"], "diagnose"),
    ],
)
def test_what_needs_an_extra_names_it(base: Shell, drawn: Path, command: list[str], extra: str) -> None:
    write_job(base.folder, drawn, **SMALL)
    images = drawn / "images"
    places = {
        "IMAGE": images / "images/000001.jpg",
        "INSTANCES": images / "instances.json",
        "IMAGES": images / "images",
    }
    done = base.run(*(str(places.get(word, word)) for word in command))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"pip install 'yolofleet[{extra}]'" in done.stderr, done.stderr
    assert not (base.folder / "runs").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``make wheel`` builds it, of a copy of what it is made of."""
    source = tmp_path_factory.mktemp("source")
    for name in ("platform", "jobs", "search_spaces"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "commit.txt")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "platform/yolofleet/commit.txt").write_text("0123456789ab\n")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    done = subprocess.run([sys.executable, "-m", "pip", *build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_that_is_no_code(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("jobs", "specs/jobs"), ("search_spaces", "specs/search_spaces")):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"yolofleet/{inside}/{path.name}" in names
    package = ROOT / "platform" / "yolofleet"
    for pattern in ("models/zoo/*.yaml", "specs/recipes/*.yaml", "evaluation/*.csv", "py.typed", "**/*.py", "*.pyi"):
        files = [path.relative_to(package).as_posix() for path in package.glob(pattern)]
        assert files and {f"yolofleet/{name}" for name in files} <= names


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1500)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, drawn: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    program = str(tmp_path / "venv" / "bin" / "yolofleet")
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    install = [
        str(tmp_path / "venv/bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "1",
        *pins,
        str(wheel),
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode and any(sign in installed.stderr for sign in ("onnection", "No matching distribution")):
        pytest.skip(f"no package index answers: {installed.stderr.splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    job = write_job(tmp_path, drawn, **SMALL)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stderr}"
        return done.stdout

    assert "(commit 0123456789ab)" in run("--version")
    assert "yolov7-e6e" in run("models", "list")
    assert "AP50" in run("train", str(job), "--launcher", "process")
    assert "detections" in run("predict", "runs/small/model", str(drawn / "images/images/000001.jpg"), "--out", "found")
