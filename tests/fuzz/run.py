"""Fuzzing of every reader of foreign bytes: random input, guided by coverage, with limits of time and memory a case.

A target is a function ``fuzz_READER(data)`` in a file ``targets_*.py`` beside this one. It feeds the bytes to the
reader and catches only the errors that the reader promises: whatever else it raises is a finding, and so is a case that
takes too long or too much memory. Each target runs in its own process; its seeds are in ``seeds/READER/``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FINDINGS = FOLDER / "findings"
READERS = (
    "spec_yaml", "manifest", "index", "annotation", "tar_scan", "coco", "yolo", "voc", "class_names", "checkpoint",
    "package", "redaction", "results_json", "run_log", "run_document", "lock_record", "search_rows",
    "alias_tags", "prediction_part",
)  # fmt: skip
"""The readers of everything that comes in from outside; each of them has a target."""
CASE_SECONDS = 2.0
CASE_BYTES = 100 << 20
HANG_SECONDS = 10
"""A case that has not ended after so long hangs: it waits for something, or computes without an end."""
ADDRESS_SPACE_BYTES = 512 << 20
"""What a case may reserve: a huge allocation fails before it hurts the machine."""
LONGEST_CASE_BYTES = 16384

Target = Callable[[bytes], None]


class LimitError(Exception):
    """A case took too much time or memory."""


@dataclass(frozen=True)
class Outcome:
    """The result of one target: how many cases ran, and the files of what was found."""

    reader: str
    num_cases: int
    seconds: float
    findings: tuple[Path, ...]
    log: str


def load_targets() -> dict[str, Target]:
    """Return every target by the name of its reader."""
    targets: dict[str, Target] = {}
    for path in sorted(FOLDER.glob("targets_*.py")):
        spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, function in vars(module).items():
            if name.startswith("fuzz_") and callable(function):
                targets[name.removeprefix("fuzz_")] = function
    return targets


def seeds(reader: str) -> list[bytes]:
    """Return the seeds of a reader, in the order of their names."""
    return [path.read_bytes() for path in sorted((FOLDER / "seeds" / reader).glob("*"))]


def run_case(target: Target, data: bytes) -> None:
    """Run one case within the limits.

    Raises:
        LimitError: It took more processor time, or its memory grew more, than a case may.
    """
    peak_before, bytes_before = peak_bytes(), resident_bytes()
    start = time.process_time()  # not the clock's time: a busy machine takes longer and no reader is to blame
    target(data)
    seconds = time.process_time() - start
    peak = peak_bytes()
    if peak > peak_before and peak - bytes_before > CASE_BYTES:
        raise LimitError(f"memory grew by {(peak - bytes_before) >> 20} MB; {CASE_BYTES >> 20} MB are allowed")
    if seconds > CASE_SECONDS:
        raise LimitError(f"{seconds:.1f} s of processor time; {CASE_SECONDS:g} s are allowed")


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def _limited_address_space() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + ADDRESS_SPACE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz_in_this_process(reader: str, arguments: list[str]) -> None:
    """Give the process to Atheris, which ends it after the last case or the first finding."""
    import atheris

    with atheris.instrument_imports(include=["yolofleet"]):
        target = load_targets()[reader]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports

    def run(data: bytes) -> None:
        with _limited_address_space():  # of each case: what Atheris itself keeps grows from case to case
            run_case(target, data)

    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def fuzz(reader: str, num_cases: int) -> Outcome:
    """Fuzz one reader in a process of its own."""
    FINDINGS.mkdir(exist_ok=True)
    known = set(FINDINGS.iterdir())
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="yolofleet-fuzz-") as corpus:
        flags = [
            f"-runs={num_cases}", "-seed=1", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=0",
            f"-max_len={LONGEST_CASE_BYTES}", f"-artifact_prefix={FINDINGS}/{reader}-", corpus,
        ]  # fmt: skip
        if (own := FOLDER / "seeds" / reader).is_dir():
            flags.append(str(own))
        command = [sys.executable, __file__, "--one", reader, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    found = tuple(sorted(path for path in set(FINDINGS.iterdir()) - known if path.name.startswith(f"{reader}-")))
    if done.returncode and not found:  # the process died before a case ran, or without telling which one it was
        died = FINDINGS / f"{reader}-died.log"
        died.write_text(done.stdout)
        found = (died,)
    counts = [int(count) for count in re.findall(r"^#(\d+)\s", done.stdout, re.MULTILINE)]
    return Outcome(reader, max(counts, default=0), time.monotonic() - start, found, done.stdout)


def repeat(reader: str, path: Path) -> None:
    """Run the case in a file again, without Atheris; what it raises is shown as it is."""
    target = load_targets()[reader]
    with _limited_address_space():
        run_case(target, path.read_bytes())
    print(f"{reader}: {path}: nothing is found")


def main() -> int:
    """Fuzz the readers that were asked for; the exit code is 1 where anything was found."""
    if sys.argv[1:2] == ["--one"]:
        fuzz_in_this_process(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="cases of each reader")
    parser.add_argument("--only", nargs="+", metavar="READER", help="these readers only")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="repeat the case in this file (with --only READER)")
    options = parser.parse_args()
    targets = load_targets()
    chosen = options.only or list(targets)
    if unknown := sorted(set(chosen) - set(targets)):
        parser.error(f"no such reader: {', '.join(unknown)}; there are {', '.join(sorted(targets))}")
    if options.repeat:
        repeat(chosen[0], options.repeat)
        return 0
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda reader: fuzz(reader, options.cases), chosen))
    for outcome in outcomes:
        if outcome.findings:
            print(f"== {outcome.reader}", *outcome.log.splitlines()[-40:], sep="\n")
    print(f"{'reader':<16}{'cases':>10}{'seconds':>10}{'findings':>10}")
    for outcome in outcomes:
        print(f"{outcome.reader:<16}{outcome.num_cases:>10}{outcome.seconds:>10.1f}{len(outcome.findings):>10}")
    for outcome in outcomes:
        for path in outcome.findings:
            print(f"Repeat: python tests/fuzz/run.py --only {outcome.reader} --repeat {path}")
    return int(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
