"""What all commands have in common: one ``--json`` option, one way to print, one way to say how they ended."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import pytest
import typer

from yolofleet.cli.commands import app
from yolofleet.cli.options import JsonOption, parse_byte_option, print_result
from yolofleet.core.errors import UserError


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
