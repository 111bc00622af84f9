"""``yolofleet submit``: sends a run, a search or other work to a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.jobs import follow_job, refuse_both
from yolofleet.cli.options import Address, AnyVersion, JsonOption, print_result
from yolofleet.core.errors import EXIT_DONE, UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import did_you_mean

if TYPE_CHECKING:
    import click

    from yolofleet.cluster.bundle import Bundle

SUBMIT_OPTIONS = ("--address", "--follow", "--any-version", "--json", "--cpus", "--gpus", "--job-name")


@dataclass(frozen=True)
class Paths:
    """Which parameters of a command name files."""

    read: tuple[str, ...]
    """They must lie where every node of the cluster reads them."""
    written: tuple[str, ...] = ()
    """They must outlive the node."""


PATHS = {
    ("evaluate",): Paths(("model", "data"), ("results", "report")),
    ("predict",): Paths(("model", "images"), ("out", "objectness")),
    ("export",): Paths(("model", "int8", "verify_data"), ("out",)),
    ("data", "shard"): Paths(("annotations", "images", "classes"), ("out",)),
    ("registry", "verify"): Paths(("data",)),
}


def submit(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="JOB",
            help="A job spec or a search space (YAML); or a command: evaluate, predict, export, data shard, registry "
            "verify, with its arguments.",
            show_default=False,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. epochs=5; or the command's arguments."),
    ] = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it has ended.")] = False,
    any_version: AnyVersion = False,
    cpus: Annotated[float | None, typer.Option("--cpus", min=0, help="CPUs for a command. Default: 1.")] = None,
    gpus: Annotated[float | None, typer.Option("--gpus", min=0, help="GPUs for a command. Default: none.")] = None,
    job_name: Annotated[
        str | None, typer.Option("--job-name", help="Name of a command's job. Default: made of its arguments.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Send a run, a search or other work to a cluster. Sent again, it finds the running job or resumes the run."""
    from yolofleet.cluster.bundle import read_bundle, sent_command
    from yolofleet.cluster.service import JobService
    from yolofleet.storage import open_file

    refuse_both(follow, as_json)
    given = [spec, *(words or [])]
    if (command := sent_command(given)) is not None:
        bundle = read_command(command, given[len(command) :], cpus=cpus, gpus=gpus, name=job_name)
    else:
        _refuse_options(spec, words or [], {"--cpus": cpus, "--gpus": gpus, "--job-name": job_name})
        bundle = read_bundle(open_file(spec), words or [])
    service = JobService(address)
    job, is_new = service.send(bundle, any_version=any_version)
    note(f"{'sent' if is_new else f'already exists, {job.status.lower()}'}: {job.id}")
    print_result(asdict(job), (), as_json=as_json)
    if follow:
        return follow_job(service, job)
    if not as_json:
        arguments = f"{job.id} --address {service.address}"
        note(f"  yolofleet jobs logs {arguments} --follow\n  yolofleet jobs stop {arguments}")
    return EXIT_DONE


def _refuse_options(spec: str, words: list[str], of_commands: dict[str, Any]) -> None:
    """Refuse options that a run or a search does not take."""
    from yolofleet.cluster.bundle import COMMANDS

    if "://" not in spec and not Path(spec).exists() and not spec.endswith((".yaml", ".yml")):
        known = [" ".join(command) for command in COMMANDS]
        raise UserError(
            f"{spec}: is neither a file nor a command that can be sent{did_you_mean(spec, known)}; those are "
            f"{', '.join(known)}"
        )
    for word in (word for word in words if word.startswith("-")):
        raise UserError(f"no such option: {word}{did_you_mean(word, SUBMIT_OPTIONS)}")
    for option, value in of_commands.items():
        if value is not None:
            raise UserError(f"{option} is for commands; the resources of a run are in its spec, under cluster")


def read_command(
    command: tuple[str, ...], words: list[str], *, cpus: float | None, gpus: float | None, name: str | None
) -> Bundle:
    """Return the bundle of a command after its own parser has taken the words, with every local path absolute.

    Raises:
        UserError: What it writes would stay on a node, or a word holds a secret.
    """
    from yolofleet.cli.commands import app
    from yolofleet.cluster.bundle import command_bundle

    parser: Any = typer.main.get_command(app)
    for part in command:
        parser = parser.commands[part]
    context = parser.make_context(" ".join(command), list(words))  # a wrong option is an error of this command
    paths = PATHS[command]
    options: list[str] = []
    arguments: list[str] = []
    for parameter in parser.params:
        if (value := context.params.get(parameter.name)) is None:
            continue
        is_default = context.get_parameter_source(parameter.name).name == "DEFAULT"
        if parameter.name in paths.written:
            value = _check_written(parameter, value)
        elif is_default:
            continue
        elif parameter.name in paths.read:
            value = [_readable(item) for item in value] if isinstance(value, list | tuple) else _readable(str(value))
        if parameter.param_type_name == "argument":
            arguments += [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
        else:
            options += _option_words(parameter, value)
    if cpus is None:
        cpus = 0.0 if context.params.get("workers") else 1.0  # Ray's workers count by themselves
    return command_bundle([*command, *options, "--", *arguments], cpus=cpus, gpus=gpus or 0.0, name=name)


def _option_words(parameter: click.Option, value: Any) -> Iterator[str]:
    if parameter.is_flag:
        yield parameter.opts[0] if value else parameter.secondary_opts[0]
        return
    for item in value if isinstance(value, list | tuple) else [value]:
        yield from (parameter.opts[0], str(item))


def _check_written(parameter: click.Parameter, value: Any) -> str:
    """Return where the command writes, if that outlives the node that it runs on.

    Raises:
        UserError: It is a path of the folder that the command runs in.
    """
    text = str(value)
    if "://" not in text and not Path(text).is_absolute():
        label = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
        raise UserError(
            f"{label} {text}: would stay on the node that the job runs on; give s3://..., or the absolute path of a "
            "folder that this machine and the nodes share"
        )
    return text


def _readable(text: str) -> str:
    """Return what a command reads, a path made absolute: the job runs in another folder."""
    from yolofleet.core.registered_names import registered_uri
    from yolofleet.specs.base import absolute_url

    return text if text == "-" else registered_uri(text) or absolute_url(text)
