"""``yolofleet``: every command by its name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import typer

from yolofleet import __version__
from yolofleet.cli import (
    anchors,
    bench,
    cluster,
    data,
    data_check,
    data_show,
    demo,
    evaluate,
    export,
    init,
    jobs,
    models,
    models_benchmark,
    models_compare,
    predict,
    promotion,
    proof,
    registry,
    report,
    runs,
    runs_remove,
    schema,
    submit,
    train,
    tune,
)
from yolofleet.cli.examples import EXAMPLES
from yolofleet.core.terminal import show

app = typer.Typer(
    name="yolofleet",
    help="Train YOLOv7 detectors on one machine or a cluster, search scaling factors, and release verified models.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by "
    "SIGHUP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data.app.command("check")(data_check.check)
data.app.command("show")(data_show.show)
data.app.command("anchors")(anchors.anchors)
app.add_typer(data.app, name="data")
models.app.command("compare")(models_compare.compare)
models.app.command("benchmark")(models_benchmark.benchmark)
app.add_typer(models.app, name="models")
app.command("init")(init.init)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("bench")(bench.bench)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("submit", context_settings={"ignore_unknown_options": True})(submit.submit)
app.command("schema")(schema.schema)
for command in (proof.verify, proof.compare, promotion.promote, promotion.rollback, promotion.history):
    registry.app.command(command.__name__)(command)
app.add_typer(registry.app, name="registry")
app.add_typer(jobs.app, name="jobs")
runs.app.command("remove")(runs_remove.remove)
runs.app.command("gc")(runs_remove.gc)
app.add_typer(runs.app, name="runs")
app.add_typer(cluster.app, name="cluster")


def _add_examples(group: typer.Typer, above: tuple[str, ...] = ()) -> None:
    """Put the examples of every command below its help; a blank line makes a line of its own there."""
    for command in group.registered_commands:
        path = " ".join((*above, str(command.name or getattr(command.callback, "__name__", ""))))
        command.epilog = "\n\n".join(("Examples:", *EXAMPLES[path]))
    for child in group.registered_groups:
        assert child.typer_instance is not None
        _add_examples(child.typer_instance, (*above, str(child.name)))


_add_examples(app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print version and commit, and exit.")) -> None:
    if version:
        commit = _commit()
        show(f"yolofleet {__version__}{f' (commit {commit})' if commit else ''}")
        raise typer.Exit


def _commit() -> str:
    """Return the commit that the wheel was built of, or that is checked out, with a + for changes; "" where unknown."""
    package = Path(__file__).parents[1]
    if (package / "commit.txt").is_file():
        return (package / "commit.txt").read_text().strip()
    if not (package.parents[1] / ".git").exists():
        return ""
    command = ["git", "-C", str(package), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
