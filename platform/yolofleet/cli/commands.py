"""``yolofleet``: every command by its name."""

from __future__ import annotations

import typer

from yolofleet import __version__
from yolofleet.cli import (
    anchors,
    bench,
    cluster,
    data,
    data_check,
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
from yolofleet.core.terminal import show

app = typer.Typer(
    name="yolofleet",
    help="Train YOLOv7 detectors on a cluster, search their scaling factors, and release proven models.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by "
    "SIGHUP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data.app.command("check")(data_check.check)
data.app.command("anchors")(anchors.anchors)
app.add_typer(data.app, name="data")
models.app.command("compare")(models_compare.compare)
models.app.command("benchmark")(models_benchmark.benchmark)
app.add_typer(models.app, name="models")
app.command("init")(init.init)
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


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        show(f"yolofleet {__version__}")
        raise typer.Exit
