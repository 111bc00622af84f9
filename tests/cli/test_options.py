"""What all commands have in common: one ``--json`` option, one way to print, one way to say how they ended."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from yolofleet.cli.commands import app
from yolofleet.cli.examples import EXAMPLES
from yolofleet.cli.main import main
from yolofleet.cli.options import JsonOption, parse_byte_option, print_result
from yolofleet.core.errors import UserError
from yolofleet.core.registered_names import registered_uri

ROOT = Path(__file__).parents[2]


def commands(group: typer.Typer) -> Iterator[Callable[..., Any]]:
    for entry in group.registered_commands:
        assert entry.callback is not None
        yield entry.callback
    for child in group.registered_groups:
        assert child.typer_instance is not None
        yield from commands(child.typer_instance)


ALL = list(commands(app))


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.__module__}.{command.__name__}")
def test_a_command_returns_its_exit_code_and_shares_the_json_option(command: Callable[..., Any]) -> None:
    hints = get_type_hints(command, include_extras=True)
    assert hints["return"] in (int, type(None))
    for name, hint in hints.items():
        if name != "return" and "--json" in [text for entry in get_args(hint) for text in _declarations(entry)]:
            assert hint == JsonOption and name == "as_json"
    assert "typer.Exit" not in inspect.getsource(command)


def _declarations(entry: Any) -> tuple[str, ...]:
    return tuple(getattr(entry, "param_decls", None) or ())


def test_json_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> Iterator[str]:
        raise AssertionError("lines are not asked for")
        yield ""

    print_result({"a": ["é"]}, lines(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": ["é"]}
    print_result({}, ["one", "two"], as_json=False)
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize("text", ["many", "0", "0MB", ""])
def test_a_size_without_bytes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--cache"):
        parse_byte_option(text, "--cache")


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, command) of every command below a group."""
    for name, child in command.commands.items():
        yield from leaves(child, (*path, name)) if hasattr(child, "commands") else [((*path, name), child)]


LEAVES = dict(leaves(typer.main.get_command(app)))


def test_every_command_has_examples() -> None:
    assert {" ".join(path) for path in LEAVES} == EXAMPLES.keys()


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_an_example_is_a_whole_command_line(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    shown = " ".join(re.sub(r"[\u2500-\u257f]", " ", capsys.readouterr().out).split())
    for example in EXAMPLES[" ".join(path)]:
        assert example in shown
        words = shlex.split(example)
        assert words[: len(path) + 1] == ["yolofleet", *path]
        LEAVES[path].make_context(path[-1], words[len(path) + 1 :])  # a wrong argument or option raises


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_arguments_are_written_in_capitals(path: tuple[str, ...]) -> None:
    """In usage lines words in capitals are the reader's; fields of specs are KEY=VALUE in every command."""
    for parameter in LEAVES[path].params:
        if parameter.param_type_name == "argument":
            assert parameter.metavar and parameter.metavar == parameter.metavar.upper(), parameter.name
            assert parameter.name != "overrides" or "KEY=VALUE" in parameter.metavar


def test_a_ready_job_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "job", "--example", "coco-yolov7"]) == 0
    assert capsys.readouterr().out == (ROOT / "jobs" / "coco-yolov7.yaml").read_text()
    assert main(["schema", "job", "--example", "coco-yolo7"]) == 2
    assert "did you mean 'coco-yolov7'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "uri"),
    [
        ("birds@champion", "models:/birds@champion"),
        ("birds/3", "models:/birds/3"),
        ("models:/birds/3", "models:/birds/3"),
        ("runs/birds", None),
        ("birds", None),
        ("a/b/3", None),
        ("s3://runs/3", None),
        ("there/3", None),
    ],
)
def test_a_model_is_a_registered_version_or_a_place(
    model: str, uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert registered_uri(model) == uri
