"""``yolofleet``: every command, and the one function where an error becomes a message and an exit code."""

from __future__ import annotations

import re
import sys
from itertools import pairwise

import typer

from yolofleet import __version__
from yolofleet.cli import (
    anchors,
    cluster,
    data,
    evaluate,
    export,
    jobs,
    models,
    predict,
    promotion,
    proof,
    registry,
    report,
    train,
    tune,
)
from yolofleet.cli.options import EXIT_STOPPED, note
from yolofleet.core.errors import EXIT_DONE, EXIT_USER_ERROR, EXIT_WORK_FAILED, UserError, WorkError
from yolofleet.core.output_guard import guard_output
from yolofleet.core.redaction import holds_secret, redact, redact_url

URL = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)

app = typer.Typer(
    name="yolofleet",
    help="Train YOLOv7 detectors on a cluster, search their scaling factors, and release proven models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data.app.command("anchors")(anchors.anchors)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("submit")(jobs.submit)
for command in (proof.verify, proof.compare, promotion.promote, promotion.rollback, promotion.history):
    registry.app.command(command.__name__)(command)
app.add_typer(registry.app, name="registry")
app.add_typer(jobs.app, name="jobs")
app.add_typer(cluster.app, name="cluster")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(f"yolofleet {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 the work failed, 2 the input is wrong, 130 stopped."""
    guard_output()
    try:
        _refuse_secrets(sys.argv[1:] if arguments is None else arguments)
        exit_code = app(args=arguments, standalone_mode=False)
    except UserError as error:
        note(_without_secrets(f"error: {error}", arguments))
        return EXIT_USER_ERROR
    except WorkError as error:
        note(_without_secrets(f"failed: {error}", arguments))
        return EXIT_WORK_FAILED
    except KeyboardInterrupt:
        note("stopped. Run the same command again to resume from the newest checkpoint")
        return EXIT_STOPPED
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own: a wrong option or argument
            error.message = _without_secrets(error.message, arguments)  # type: ignore[attr-defined]
            error.show()
            return EXIT_USER_ERROR
        raise
    return exit_code if isinstance(exit_code, int) else EXIT_DONE


def _refuse_secrets(arguments: list[str]) -> None:
    """Refuse URLs with a secret as arguments; only MLflow's URI may hold one, as MLFLOW_TRACKING_URI may."""
    for option, argument in pairwise(["", *arguments]):
        if option != "--tracking-uri" and URL.match(argument) and holds_secret(argument):
            raise UserError(
                f"{redact_url(argument)}: holds a secret; leave it out of the URL and give it in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD)"
            )


def _without_secrets(message: str, arguments: list[str] | None) -> str:
    """Return a message without the secrets of the command's arguments, which it may quote whatever they hold."""
    for argument in sys.argv[1:] if arguments is None else arguments:
        for value in filter(holds_secret, (argument, argument.partition("=")[2])):
            message = message.replace(value, redact_url(value)).replace(redact(value), redact_url(value))
    return redact(message)


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
