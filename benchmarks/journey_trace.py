"""Which functions of a package a process enters, by Python's own tracing; it imports only the standard library.

Tracing takes the `call` events alone: a function that is entered is recorded, its lines run untraced. The bodies of
modules and classes and comprehensions do not count, for nobody opens a file for them; a lambda counts for its file.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

Function = tuple[str, str]
"""The file, relative to the package, and the qualified name."""

COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
RAY_WORKER = "default_worker.py"
"""The program of every process that Ray starts for tasks and actors."""
END_MARK = "over"
"""File whose presence ends the recording in Ray's workers."""


class Trace:
    """The functions of a package that this process enters.

    Attributes:
        functions: The functions that were entered.
        main_thread_files: The files that were entered in the main thread.
        num_jumps: How often a function of one file led to a function of another.

    Args:
        package: Folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self.functions: set[Function] = set()
        self.main_thread_files: set[str] = set()
        self.num_jumps = 0
        self._prefix = f"{package}{os.sep}"
        self._main_thread = threading.main_thread().ident
        self._stopped = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Trace this thread, and every thread that starts, within the with block."""
        self.start()
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    def start(self) -> None:
        """Trace this thread from here on, and every thread that starts."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> None:
        """Record nothing more, in any thread."""
        self._stopped = True

    def record(self, function: Function) -> None:
        """Take a function that is entered for the first time."""
        self.functions.add(function)

    def _enter(self, frame: FrameType, event: str, argument: object) -> None:
        code, prefix = frame.f_code, self._prefix
        if not code.co_filename.startswith(prefix) or self._stopped:
            return
        if not code.co_flags & inspect.CO_OPTIMIZED or code.co_name in COMPREHENSIONS:
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(prefix):
            caller = caller.f_back
        self.num_jumps += caller is not None and caller.f_code.co_filename != code.co_filename
        function = (code.co_filename.removeprefix(prefix), code.co_qualname)
        if threading.get_ident() == self._main_thread:
            self.main_thread_files.add(function[0])
        if function not in self.functions:
            self.record(function)


class WorkerTrace(Trace):
    """The functions that one of Ray's workers enters, written at once to a file: Ray may kill it at any time.

    Args:
        package: Folder of the package.
        folder: Where the file is made.
    """

    def __init__(self, package: Path, folder: Path) -> None:
        super().__init__(package)
        self._end_mark = folder / END_MARK
        self._log = (folder / f"{os.getpid()}.log").open("a")

    def record(self, function: Function) -> None:
        """Take a function that is entered for the first time."""
        super().record(function)
        if self._end_mark.exists():
            self.stop()
        else:
            print(*function, sep="\t", file=self._log, flush=True)


def trace_ray_workers(package: Path, folder: Path) -> None:
    """Trace every worker that a Ray started later in this process starts, and let it record into the folder.

    The package needs no hook for it: Python imports `sitecustomize` from the path before it does anything else.
    """
    folder.mkdir()
    call = f"journey_trace.trace_if_ray_worker({str(package)!r}, {str(folder)!r})"
    here = str(Path(__file__).parent)
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({here!r})\nimport journey_trace\n{call}\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(package.parent)])


def trace_if_ray_worker(package: str, folder: str) -> None:
    """Trace this process if Ray started it for tasks and actors."""
    if any(argument.endswith(RAY_WORKER) for argument in sys.orig_argv):
        WorkerTrace(Path(package), Path(folder)).start()


def end_worker_traces(folder: Path) -> set[Function]:
    """Let the workers record nothing more; returns the functions that they have entered."""
    (folder / END_MARK).touch()
    lines = [line for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    return {(file, name) for file, _, name in (line.partition("\t") for line in lines)}
