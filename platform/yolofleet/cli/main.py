"""The entry point, and the one function where an error or a signal becomes a message and an exit code.

It imports next to nothing before it can answer Ctrl-C; `commands` holds the commands.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import signal
import sys
from itertools import pairwise
from typing import Any

from yolofleet.core.errors import EXIT_DONE, EXIT_USER_ERROR, EXIT_WORK_FAILED, UserError, WorkError, naming_extras
from yolofleet.core.redaction import holds_secret, redact, redact_url
from yolofleet.core.stopping import StoppedBySignal, signal_name, stop_no_more, stop_on_signals
from yolofleet.core.temporary import FULL
from yolofleet.core.terminal import SCREEN, OutputError, announce, guard_output, note, silence

URL = re.compile(r"(?:[a-z][a-z0-9+.-]*:/|//)", re.IGNORECASE)

COMPLETION = "_YOLOFLEET_COMPLETE"
RESUME = {
    "data shard": "the finished shards are kept; resume the build with the same command",
    "evaluate": "nothing was kept; evaluate again with the same command",
    "export": "run the same command again; it writes all files again",
    "init": "the finished shards are kept; resume with the same command",
    "jobs": "'yolofleet jobs list' shows the state of every job on the cluster",
    "predict": "run the same command again; with --workers it resumes, because finished parts are kept",
    "registry": "'yolofleet registry list' and 'history' show what was done; run the same command again",
    "runs": "half-removed runs no longer count; the same command finishes the removal",
    "submit": "'yolofleet jobs list' shows whether the job was sent; the same command finds it, or sends it",
    "train": "resume the run with the same command, from the newest checkpoint: {command}",
    "tune": "resume the search with the same command, from its record: {command}",
}
"""What a user does after Ctrl-C, by command or group of commands."""
CURES = dict.fromkeys(FULL, "free space there, or raise ulimit -f") | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
    "name another path, or check the owner and mode of this one",
)
"""What a user does about a file, by what the system says of it."""
RUN_AGAIN = "run the same command again; it starts from the beginning"


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 the work failed, 2 the input is wrong, 130 stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    guard_output()
    try:
        _refuse_secrets(arguments)
        with naming_extras(), SCREEN.live(" ".join(["yolofleet", *_words(arguments)])):
            return _run_command(arguments)
    except UserError as error:
        note(_without_secrets(f"error: {error}", arguments))
        return EXIT_USER_ERROR
    except WorkError as error:
        if isinstance(error, OutputError) and error.is_unread:
            return EXIT_DONE
        head = "" if str(error).startswith("stopped (") else "failed: "
        note(_without_secrets(f"{head}{error}", arguments))
        return error.exit_code
    except KeyboardInterrupt as error:
        return _stopped(arguments, error.kind if isinstance(error, StoppedBySignal) else signal.SIGINT)
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # with it Ray's own handler exits
            raise
        return _stopped(arguments, signal.SIGTERM)
    except OSError as error:
        if error.errno not in CURES or (error.filename is None and error.errno not in FULL):
            raise
        note(f"error: {error.filename or 'stdout or a file'}: {error.strerror}; {CURES[error.errno]}")
        return EXIT_USER_ERROR


def _run_command(arguments: list[str]) -> int:
    import typer

    from yolofleet.cli.commands import app

    command = typer.main.get_command(app)
    if COMPLETION in os.environ:  # a shell asks which words fit
        command.main(arguments, prog_name="yolofleet", complete_var=COMPLETION)
    # Not app(): it turns Ctrl-C into an exit code before anything can be said.
    try:
        _refuse_missing_values(command, arguments)
        with command.make_context("yolofleet", list(arguments)) as context:
            exit_code = command.invoke(context)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:  # Ctrl-C or the end of the input at a question
        raise KeyboardInterrupt from None
    except Exception as error:
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        shown = io.StringIO()  # click's own: a wrong option or argument
        error.show(shown)
        note(_without_secrets(shown.getvalue().rstrip("\n") + _group_of(shown.getvalue()), arguments))
        return EXIT_USER_ERROR
    return exit_code if isinstance(exit_code, int) else EXIT_DONE


def _refuse_missing_values(command: Any, arguments: list[str]) -> None:
    """Refuse an option of the command as the value of another one, which click would take for it."""
    for word, following in pairwise(arguments):
        if word == "--":
            return
        command = getattr(command, "commands", {}).get(word, command)
        takes_value = {
            name: not (option.is_flag or option.count)
            for option in command.params
            if option.param_type_name == "option"
            for name in (*option.opts, *option.secondary_opts)
        }
        if takes_value.get(word) and following in takes_value:
            raise UserError(f"{word}: a value is missing, for {following} is an option; write {word}=VALUE")


def _group_of(message: str) -> str:
    """Return which command is meant where one was typed without its group; nothing for other mistakes."""
    from yolofleet.cli.examples import EXAMPLES

    word = re.search(r"No such command '([\w-]+)'", message)
    meant = [f"'yolofleet {path}'" for path in EXAMPLES if word is not None and path.endswith(f" {word[1]}")]
    return f"\nDid you mean {' or '.join(meant)}?" if meant else ""


def _stopped(arguments: list[str], kind: signal.Signals) -> int:
    words = _words(arguments)
    advice = RESUME.get(" ".join(words)) or RESUME.get(words[0] if words else "") or RUN_AGAIN
    stop_no_more()
    command = _without_secrets(shlex.join(["yolofleet", *arguments]), arguments)
    note(f"stopped ({signal_name(kind)}): {advice.replace('{command}', command)}")
    return 128 + kind


def _words(arguments: list[str]) -> list[str]:
    """Return the command's name: the first two words."""
    return [argument for argument in arguments if not argument.startswith("-")][:2]


def _refuse_secrets(arguments: list[str]) -> None:
    """Refuse URLs with a secret as arguments; only MLflow's URI may hold one, as MLFLOW_TRACKING_URI may."""
    for option, argument in pairwise(["", *arguments]):
        if option != "--tracking-uri" and URL.match(argument) and holds_secret(argument):
            raise UserError(
                f"{redact_url(argument)}: holds a secret; leave it out of the URL and give it in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD)"
            )


def _without_secrets(message: str, arguments: list[str]) -> str:
    """Return a message without the secrets of the command's arguments, which it may quote whatever they hold."""
    for argument in arguments:
        for value in filter(holds_secret, (argument, argument.partition("=")[2])):
            message = message.replace(value, redact_url(value)).replace(redact(value), redact_url(value))
    return redact(message)


def run() -> None:
    """Entry point of the console script."""
    stop_on_signals(announce)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever prints, ASCII is no error
    exit_code = main()
    stop_no_more()  # of a stop that the command has answered itself
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        if error.errno != errno.EPIPE:
            note(f"failed: {OutputError(error)}")
            exit_code = exit_code or EXIT_WORK_FAILED
    sys.exit(exit_code)


if __name__ == "__main__":
    run()
