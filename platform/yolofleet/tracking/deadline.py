"""Doing something that may hang, within a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(timeout_seconds: float, action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns or raises, or raise TimeoutError; a stuck one is left behind in its thread."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="within", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError
    return results[0]
