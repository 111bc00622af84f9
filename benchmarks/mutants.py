"""Change the package in one small way at a time and see whether a test fails: which mistakes would pass unseen.

    python benchmarks/mutants.py [MODULE ...] [--each 25] [--seed 0] [--processes 2] [--survivors]

`mutants.toml` beside this file names the modules, the tests of each, and the mutants that no test can kill because the
program does the same (with the reason). Mutants are drawn with a seed. Each is run against a copy of the package in
a temporary folder, in a process forked after the heavy imports. The folder `--out` gets `mutants.jsonl` (one line a
mutant) and `mutants.md` (a summary and the survivors); `--survivors` runs those of the last time again.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import multiprocessing
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mutations import Mutation, mutations

HOUSE = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutants.toml")
PRELOADED = ["torch", "cv2", "pydantic.main", "typer", "yaml", "hypothesis", "pytest_timeout"]
LEAST_TIMEOUT_SECONDS = 30.0
TIMEOUT_FACTOR = 5.0
"""A mutant may take this many times as long as the tests without it: then it is caught in an endless loop."""


@dataclass(frozen=True)
class Module:
    """One row of the table.

    Attributes:
        name: Short name, which equivalent mutants are listed by.
        file: Path in the package.
        tests: Paths in tests/, the fastest and strictest first.
        within: Functions that are changed; all of them where there are none.
    """

    name: str
    file: str
    tests: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The text of the module."""
        return (HOUSE / "platform" / "yolofleet" / self.file).read_text()


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: killed, survived, timeout or equivalent."""

    module: str
    file: str
    line: int
    text: str
    before: str
    after: str
    outcome: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names a mutant when lines move."""
        return self.module, self.text, self.before, self.after


def read_table() -> tuple[dict[str, Module], dict[tuple[str, ...], str]]:
    """Return the modules by name, and the reasons of equivalent mutants by their key."""
    document = tomllib.loads(TABLE.read_text())
    modules = {
        name: Module(name, row["file"], tuple(row["tests"]), tuple(row.get("within", ())))
        for name, row in document["modules"].items()
    }
    for module in modules.values():
        for path in (Path("platform/yolofleet") / module.file, *(Path("tests") / test for test in module.tests)):
            if not (HOUSE / path).is_file():
                sys.exit(f"{TABLE.name}: module {module.name}: there is no {path}; put its new place into the table")
    keys = ("module", "line", "before", "after")
    reasons = {tuple(row[key] for key in keys): row["reason"] for row in document.get("equivalent", [])}
    return modules, reasons


def run_tests(root: str, tests: list[str], log: str) -> None:
    """Run tests against the package below ``root``; the process ends with pytest's own status."""
    os.setsid()  # so that what a test starts ends with it
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(root)
    sys.dont_write_bytecode = True
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    os.environ |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # only two are needed, and the others take a second each time
    import hypothesis
    import pytest

    # Without shrinking: that an example fails is enough.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        phases=phases,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not system", "--hypothesis-profile=mutants"]
    options += ["-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"]
    options += ["-c", str(HOUSE / "pyproject.toml"), f"--rootdir={HOUSE}", "-o", f"pythonpath={root} {HOUSE / 'tests'}"]
    status = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(int(status))


class Room:
    """A copy of the package in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(HOUSE / "platform", folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        compileall.compile_dir(folder, quiet=2)
        self._context = multiprocessing.get_context("forkserver")

    def status(self, module: Module, source: str | None, timeout_seconds: float) -> tuple[int | None, float]:
        """Return pytest's status (None: out of time) with a changed source, and the seconds it took."""
        file = self.folder / "yolofleet" / module.file
        original = file.read_text()
        if source is not None:
            file.write_text(source)
            Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        tests = [str(HOUSE / "tests" / test) for test in module.tests]
        log = self.folder / "log.txt"
        begin = time.monotonic()
        process = self._context.Process(target=run_tests, args=(str(self.folder), tests, str(log)))
        try:
            process.start()
            process.join(timeout_seconds)
            if process.exitcode is None:
                os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
                return None, time.monotonic() - begin
            return process.exitcode, time.monotonic() - begin
        finally:
            file.write_text(original)


def as_verdict(module: Module, found: Mutation) -> Verdict:
    """Return a mutant that has not run yet."""
    return Verdict(module.name, module.file, found.line, found.text, found.before, found.after)


def chosen(module: Module, each: int, seed: int) -> list[tuple[Verdict, Mutation]]:
    """Draw mutants of a module."""
    found = mutations(module.source, module.within)
    drawn = random.Random(f"{seed} {module.name}").sample(found, min(each, len(found)))
    return [(as_verdict(module, entry), entry) for entry in sorted(drawn, key=lambda entry: entry.line)]


def summary(verdicts: list[Verdict], reasons: dict[tuple[str, ...], str]) -> str:
    """Return the table and the survivors, in Markdown."""
    names = list(dict.fromkeys(entry.module for entry in verdicts))
    columns = ("killed", "timeout", "equivalent", "survived")
    lines = ["| module | mutants | " + " | ".join(columns) + " |", "|---|" + "---:|" * 5]
    for name in (*names, "all"):
        outcomes = Counter(entry.outcome for entry in verdicts if name in (entry.module, "all"))
        numbers = [outcomes.total(), *(outcomes[column] for column in columns)]
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    for outcome, title in (("survived", "Survivors"), ("equivalent", "Equivalent")):
        lines += ["", f"## {title}", ""]
        for entry in verdicts:
            if entry.outcome == outcome:
                lines.append(f"- {entry.module} ({entry.file}:{entry.line}) `{entry.text}`")
                lines.append(f"  `{entry.before}` became `{entry.after}` {reasons.get(entry.key, '')}".rstrip())
    return "\n".join(lines) + "\n"


def run_all(todo: list[tuple[Module, Verdict, Mutation]], num_processes: int, out: Path) -> Iterable[Verdict]:
    """Run mutants, a few at a time; each verdict is written as it comes."""
    modules = list(dict.fromkeys(module for module, _, _ in todo))
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        rooms: queue.Queue[Room] = queue.Queue()
        for number in range(num_processes):
            rooms.put(Room(Path(folder) / str(number)))

        def status(module: Module, source: str | None, timeout_seconds: float) -> tuple[int | None, float]:
            room = rooms.get()
            try:
                result = room.status(module, source, timeout_seconds)
                if source is None and result[0] != 0:
                    sys.stderr.write((room.folder / "log.txt").read_text())
                return result
            finally:
                rooms.put(room)

        def judge(module: Module, verdict: Verdict, mutation: Mutation) -> Verdict:
            limit = max(LEAST_TIMEOUT_SECONDS, TIMEOUT_FACTOR * usual[module.name])
            code, seconds = status(module, mutation.source(), limit)
            outcome = "timeout" if code is None else "survived" if code == 0 else "killed"
            return replace(verdict, outcome=outcome, seconds=round(seconds, 1))

        usual = {}
        with ThreadPoolExecutor(num_processes) as pool, out.open("w") as file:
            for module, (code, seconds) in zip(
                modules, pool.map(lambda m: status(m, None, 600.0), modules), strict=True
            ):
                if code != 0:
                    raise SystemExit(f"{module.name}: its tests do not pass without a mutant either (status {code})")
                usual[module.name] = seconds
                print(f"{module.name}: tests take {seconds:.0f} s", flush=True)
            for verdict in pool.map(lambda row: judge(*row), todo):
                file.write(json.dumps(asdict(verdict)) + "\n")
                file.flush()
                print(
                    f"{verdict.outcome:9} {verdict.module}:{verdict.line} {verdict.before} -> {verdict.after}",
                    flush=True,
                )
                yield verdict


def main() -> None:
    """Read the command line, run, write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="names in mutants.toml; all of them by default")
    parser.add_argument("--each", type=int, default=25, help="mutants of a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HOUSE / "build" / "mutants")
    parser.add_argument("--survivors", action="store_true", help="run only those that survived the last time")
    options: Any = parser.parse_args()
    modules, reasons = read_table()
    if unknown := set(options.modules) - set(modules):
        parser.error(f"no module {', '.join(sorted(unknown))} in {TABLE.name}; there are {', '.join(modules)}")
    rows = [modules[name] for name in options.modules or modules]
    record = options.out / "mutants.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = [(module, *pair) for module in rows for pair in chosen(module, options.each, options.seed)]
    if options.survivors:
        last = [Verdict(**json.loads(line)) for line in record.read_text().splitlines()]
        keys = {entry.key for entry in last if entry.outcome == "survived"}
        drawn = [(m, as_verdict(m, found), found) for m in rows for found in mutations(m.source, m.within)]
        drawn = [row for row in drawn if row[1].key in keys]
    listed = [replace(verdict, outcome="equivalent") for _, verdict, _ in drawn if verdict.key in reasons]
    todo = [row for row in drawn if row[1].key not in reasons]
    verdicts = sorted([*listed, *run_all(todo, options.processes, record)], key=lambda v: (v.module, v.line))
    record.write_text("".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    (options.out / "mutants.md").write_text(summary(verdicts, reasons))
    print(summary(verdicts, reasons))
    possible = {as_verdict(m, found).key for m in rows for found in mutations(m.source, m.within)}
    stale = [key for key in reasons if key[0] in {m.name for m in rows} and key not in possible]
    for key in stale:
        print(f"{TABLE.name}: this equivalent mutant is no longer possible: {key}")
    sys.exit(1 if stale or any(verdict.outcome == "survived" for verdict in verdicts) else 0)


if __name__ == "__main__":
    main()
