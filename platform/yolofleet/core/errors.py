"""The error that a user can cure, and the exit codes of every command."""

from __future__ import annotations

from yolofleet.core.redaction import redact

EXIT_DONE = 0
EXIT_WORK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 130
"""Ctrl-C has stopped the command; a shell expects this."""


class RedactedError(Exception):
    """An error that is shown as its message alone, without the secrets of URLs and without a traceback."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in arguments))


class UserError(RedactedError):
    """Wrong input or surroundings that the user can put right; shown as one message, without a traceback.

    The message names what is wrong, where (file, key, shard, sample), the value seen, and the cure.
    """


class WorkError(RedactedError):
    """The work itself failed although its input was right (exit code 1), shown without a traceback."""

    exit_code = EXIT_WORK_FAILED
