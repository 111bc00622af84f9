"""The error that a user can cure, the packages that an extra brings, and the exit codes of every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


EXTRAS = {
    "deepspeed": "cluster",
    "ray": "cluster",
    "imagehash": "diagnose",
    "pycocotools": "diagnose",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "apprise": "notify",
    "optuna": "search",
    "mlflow": "server",
    "tensorboardX": "tensorboard",
}
"""The packages that not every installation has, and the extra that brings each."""


class MissingExtraError(UserError):
    """A package is not installed that an extra of yolofleet brings."""

    def __init__(self, package: str, otherwise: str = "") -> None:
        super().__init__(
            f"this needs {package}, which is not installed; pip install 'yolofleet[{EXTRAS[package]}]'{otherwise}"
        )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; it is not imported.

    A folder of that name in the working folder (``onnx``, ``ray``) is none: Python finds it, without an origin.
    """
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def require_package(package: str, otherwise: str = "") -> None:
    """Raise `MissingExtraError` where a package of `EXTRAS` is missing.

    Args:
        package: Its import name.
        otherwise: What else cures it, for the end of the message.
    """
    if not is_installed(package):
        raise MissingExtraError(package, otherwise)


@contextmanager
def naming_extras() -> Iterator[None]:
    """Turn the failed import of a package of `EXTRAS` inside the block into an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS or is_installed(package):
            raise
        raise MissingExtraError(package) from error
