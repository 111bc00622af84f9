"""Every command that the documentation shows is run as it stands, in a folder that holds what it speaks of."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from system.shell import Shell, write_job
from yolofleet.cli.main import app
from yolofleet.models import build_model
from yolofleet.models.weights import official_parameter_names

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SYNOPSIS = re.compile(r"\[|\b[A-Z]{2,}\b|\.\.\.")
LONG = (
    "yolofleet export runs/quickstart exported/detector.onnx",
    "yolofleet export my-detector my",
    "yolofleet registry import yolov7.pt",
    "yolofleet cluster doctor job.yaml",
)
"""Commands of half a minute each; tests of their own look at what they do."""
TRACKING_URI = "sqlite:///runs/_mlflow/mlflow.db"
SPACE = """
name: my-search
job: job.yaml
parameters: {hyperparameters.lr0: {log_uniform: [0.001, 0.01]}}
budget: {trials: 1}
"""


def commands(page: Path) -> list[str]:
    """The yolofleet commands in a page's code blocks, without comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.split(r"\s{2,}| #", line.strip())[0] for line in lines if line.strip().startswith("yolofleet ")]


def examples() -> list[Any]:
    """(page, command) of every command that is no synopsis; the long ones run with the whole set only."""
    return [
        pytest.param(page.name, command, marks=[pytest.mark.slow] if command.startswith(LONG) else [])
        for page in PAGES
        for command in commands(page)
        if not SYNOPSIS.search(command.replace("runs/NAME", "runs/quickstart").replace("-NAME", ""))
    ]


@pytest.fixture(scope="module")
def household(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with everything that the pages name; what they keep on S3 lies in a folder here."""
    folder = tmp_path_factory.mktemp("household")
    shell = Shell(folder, {"MLFLOW_TRACKING_URI": TRACKING_URI})
    job = write_job(
        folder,
        drawn,
        name="quickstart",
        cluster__workers=1,
        epochs=1,
        tracking={"register_as": "shapes"},
    )
    shell.succeed("train", str(job), "--launcher", "process")
    (folder / "runs" / "NAME").symlink_to(folder / "runs" / "quickstart")
    shutil.copytree(folder / "runs" / "quickstart" / "model", folder / "my-detector")
    for part in ("train", "val"):
        shutil.copy(drawn / f"images/instances_{part}.json", folder)
    shutil.copy(drawn / "images/instances_train.json", folder / "instances_train2017.json")
    shutil.copy(drawn / "images/instances_val.json", folder / "annotations.json")
    for name in ("images", "train2017", "photos"):
        shutil.copytree(drawn / "images/images", folder / name)
    for name in ("data/val", "store/datasets/val"):
        shutil.copytree(drawn / "shards/val", folder / name)
    shutil.copy(drawn / "images/images/000004.jpg", folder / "a.jpg")
    shutil.copy(drawn / "images/images/000009.jpg", folder / "b.png")
    for name, model, num_classes in (("yolov7.pt", "yolov7", 80), ("mine.pt", "yolov7-tiny", 3)):
        detector = build_model(model, num_classes=num_classes)
        state = detector.state_dict()
        published = {theirs: state[ours].half() for theirs, ours in official_parameter_names(detector).items()}
        torch.save(published, folder / name)
    write_job(folder, drawn, name="my-run", cluster__workers=1, epochs=0.2)
    (folder / "space.yaml").write_text(SPACE)
    shutil.copy(ROOT / "jobs" / "coco-yolov7.yaml", folder)
    shutil.copy(ROOT / "infra" / "kubernetes" / "settings.yaml", folder)
    shell.succeed("tune", "space.yaml", "--yes")
    return shell


def test_the_pages_hold_commands() -> None:
    assert len(examples()) >= 15


@pytest.mark.parametrize(("page", "command"), examples(), ids=lambda text: text.replace("/", "|"))
def test_a_documented_command_works(page: str, command: str, household: Shell) -> None:
    command = command.replace("s3://", "store/").replace("--version 3", "--version 1")
    arguments = shlex.split(command)[1:]
    if arguments[:2] == ["train", "job.yaml"]:
        arguments += ["--launcher", "process"]
    household.succeed(*arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    import typer

    known = typer.main.get_command(app)
    for command in commands(page):
        first, *rest = shlex.split(command.replace("|", " "))[1:]
        group = known.commands[first]  # type: ignore[attr-defined]
        if hasattr(group, "commands") and rest and rest[0].isalpha() and rest[0].islower():
            assert rest[0] in group.commands, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
