"""Every command that the documentation shows is run as it stands, in a folder that holds what it speaks of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from system.pages import PAGES, shell_lines
from system.shell import Shell
from system.test_shell_lines import run_elsewhere
from yolofleet.cli.commands import app

pytestmark = pytest.mark.system
SYNOPSIS = re.compile(r"\[|\b[A-Z]{2,}\b|\.\.\.")
LONG = (
    "yolofleet export runs/quickstart exported/detector.onnx",
    "yolofleet export my-detector my",
    "yolofleet registry import yolov7.pt",
    "yolofleet cluster doctor job.yaml",
    "yolofleet evaluate models:/",
    "yolofleet registry import mine.pt",
    "yolofleet train job.yaml cluster.workers=2",
)
"""Commands that take long; tests of their own look at what they do."""


def commands(page: Path) -> list[str]:
    """The yolofleet commands in a page's code blocks."""
    return [line.text for line in shell_lines(page) if line.text.startswith("yolofleet ")]


def is_synopsis(command: str) -> bool:
    """Whether a command has places that the reader fills in."""
    return SYNOPSIS.search(command.replace("runs/NAME", "runs/quickstart").replace("-NAME", "")) is not None


def examples() -> list[Any]:
    """(page, command) of every command that can be run as it stands; the long ones run with the whole set only."""
    return [
        pytest.param(page.name, line.text, marks=[pytest.mark.slow] if line.text.startswith(LONG) else [])
        for page in PAGES
        for line in shell_lines(page)
        if line.text.startswith("yolofleet ")
        and not is_synopsis(line.text)
        and not line.needs
        and run_elsewhere(line) is None
    ]


def test_the_pages_hold_commands() -> None:
    assert len(examples()) >= 15


@pytest.mark.parametrize(("page", "command"), examples(), ids=lambda text: text.replace("/", "|"))
def test_a_documented_command_works(page: str, command: str, household: Shell) -> None:
    command = command.replace("s3://", "store/").replace("--version 3", "--version 1")
    arguments = shlex.split(command)[1:]
    if arguments[:2] == ["train", "job.yaml"]:
        arguments += ["--launcher", "process"]
    household.succeed(*arguments)


def sent_parameters(words: list[str]) -> list[Any]:
    """The parameters of the command that `submit` sends; none for a spec."""
    import typer

    from yolofleet.cluster.bundle import sent_command

    known: Any = typer.main.get_command(app)
    for word in sent_command(words) or ():
        known = known.commands[word]
    return list(known.params) if sent_command(words) else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    import typer

    for command in commands(page):
        known = typer.main.get_command(app)
        words = shlex.split(command.replace("|", " "))[1:]
        while hasattr(known, "commands") and words:
            word = words.pop(0)
            assert word in known.commands, command
            known = known.commands[word]
        parameters = [*known.params, *sent_parameters(words)] if known.name == "submit" else known.params
        options = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {*re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", command)} <= options, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
