"""``yolofleet runs list`` and ``show``: what a storage holds of runs and searches; no cluster has to be there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, TrackingUri, print_result
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.durations import format_duration
from yolofleet.core.errors import UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.storage import Storage
    from yolofleet.tracking.run_catalog import RunFigures, StoredRun

app = typer.Typer(help="Runs and searches in a storage: list, show, remove.", no_args_is_help=True)

StorageUrl = Annotated[
    str, typer.Argument(metavar="STORAGE", help="Storage of the runs: a folder or s3:// URL.", show_default=False)
]
RunUrl = Annotated[str, typer.Argument(metavar="RUN", help="Directory of a run or a search.", show_default=False)]
States = Annotated[list[str] | None, typer.Option("--state", help="Only those in this state; may be repeated.")]
NAME_CHARACTERS = 26
PATIENCE_SECONDS = 8.0
"""How long one request waits for a storage that does not answer."""


@app.command("list")
def list_runs(
    storage: StorageUrl,
    state: States = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Only names that match this pattern, e.g. 'coco-*'.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Runs on a page.")] = 50,
    page: Annotated[int, typer.Option("--page", min=1, help="Which page; the first has the newest.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """List the runs and searches in a storage, the newest first, from all clusters."""
    from fnmatch import fnmatchcase

    from yolofleet.tracking.run_catalog import catalog

    root = open_runs(storage)
    runs = [run for run in catalog(root) if name is None or fnmatchcase(run.name, name)]
    runs.sort(key=lambda run: -run.changed_at)
    if state is None:  # else the states must be known before the page is cut
        shown = runs[(page - 1) * limit : page * limit]
        entries = list(zip(shown, read_states(root, shown), strict=True))
    else:
        wanted = {word.upper() for word in state}
        found = [pair for pair in zip(runs, read_states(root, runs), strict=True) if pair[1].state in wanted]
        entries, runs = found[(page - 1) * limit : page * limit], [run for run, _ in found]
    documents = [_document(root, run, figures) for run, figures in entries]
    total = sum(run.size_bytes for run in runs)
    print_result(documents, _table(entries) if entries else [f"{root.url}: holds no such run"], as_json=as_json)
    if not as_json and entries:
        more = f"; --page {page + 1} shows more" if page * limit < len(runs) else ""
        note(f"{len(entries)} of {len(runs)}, {format_bytes(total)} in all{more}")


def open_runs(url: str) -> Storage:
    """Open the storage that holds runs, as `open_root` does.

    Raises:
        UserError: It is a folder that is not there.
    """
    root = open_root(url)
    inside = root.local_path("run")
    if inside is not None and not inside.parent.is_dir():
        raise UserError(f"{url}: there is no such folder; name the one that holds the runs, or s3://BUCKET/PREFIX")
    return root


def open_root(url: str) -> Storage:
    """Open a storage that is not waited for long."""
    from yolofleet.storage import open_storage

    return open_storage(url, patience_seconds=PATIENCE_SECONDS)


def read_states(root: Storage, runs: Sequence[StoredRun]) -> list[RunFigures]:
    """Return how far each run has come."""
    from yolofleet.tracking.run_catalog import read_catalog

    return read_catalog(root, runs)


def _document(root: Storage, run: StoredRun, figures: RunFigures) -> dict[str, Any]:
    return {
        "name": run.name,
        "kind": run.kind,
        "url": root.child(run.name).url,
        **asdict(figures),
        "size_bytes": run.size_bytes,
        "num_objects": len(run.objects),
        "num_trials": run.num_trials if run.kind == "search" else None,
        "changed_at": run.changed_at,
    }


def _table(entries: Iterable[tuple[StoredRun, RunFigures]]) -> Iterator[str]:
    width = NAME_CHARACTERS + max(0, shutil.get_terminal_size().columns - 80)
    yield f"{'NAME':<{width}} {'STATE':<11} {'STEP':>13} {'AP':>6} {'AGE':>4} {'SIZE':>8}"
    for run, figures in entries:
        ap = "-" if figures.ap is None else f"{figures.ap:.4f}"
        age = format_duration(time.time() - run.changed_at)
        name = run.name if len(run.name) <= width else f"{run.name[: width - 2]}.."
        line = f"{name:<{width}} {figures.state:<11} {format_steps(figures, run.kind):>13} {ap:>6} {age:>4}"
        yield f"{line} {format_bytes(run.size_bytes):>8}"
        if figures.problem is not None:
            yield f"  {figures.problem}"


def format_steps(figures: RunFigures, kind: str | None) -> str:
    """Return how far it is in 13 characters at most: ``1200/118k``, or of a search ``3 trials``."""
    if figures.step is None:
        return "-"
    if kind in ("search", "tune"):
        return plural(figures.step, "trial")
    planned = "" if figures.planned_steps is None else f"/{_short(figures.planned_steps)}"
    return f"{_short(figures.step)}{planned}"


def _short(number: int) -> str:
    if number < 10_000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 100_000 else f"{number // 1000}k"


@app.command()
def show(run: RunUrl, tracking_uri: TrackingUri = None, as_json: JsonOption = False) -> None:
    """Show one run: how far it is, the size of its parts, who trains it, which versions were made from it."""
    from yolofleet.registry.run_sources import RunSources
    from yolofleet.tracking.run_removal import is_in_use

    root, found = find_run(run)
    (figures,) = read_states(root, [found])
    sources = RunSources.ask([found], root, tracking_uri)
    document = _document(root, found, figures) | {
        "usage_bytes": found.usage(),
        "in_use_by": is_in_use(root.child(found.name)),
        "versions": sources.of(root, found),
        "versions_unknown": sources.unanswered,
    }
    print_result(document, _show_lines(document), as_json=as_json)


def _show_lines(document: dict[str, Any]) -> Iterator[str]:
    times = {key: document[key] and time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document[key])) for key in
             ("began_at", "changed_at")}  # fmt: skip
    shown = document | times | {"ap": document["ap"] and f"{document['ap']:.4f}"}
    for key in ("name", "kind", "url", "state", "problem", "step", "planned_steps", "ap", "began_at", "changed_at"):
        if shown[key] is not None:
            yield f"{key.replace('_', ' '):<14} {shown[key]}"
    yield f"{'in use by':<14} {document['in_use_by'] or 'nobody'}"
    yield f"{'versions':<14} {', '.join(document['versions']) or 'none'}"
    yield from (f"{'':<14} {problem}" for problem in document["versions_unknown"])
    yield f"{'size':<14} {format_bytes(document['size_bytes'])} in {plural(document['num_objects'], 'object')}"
    yield from (f"  {part:<12} {format_bytes(size):>8}" for part, size in document["usage_bytes"].items())


def find_run(url: str) -> tuple[Storage, StoredRun]:
    """Return a run with the storage that holds it.

    Raises:
        UserError: There is none.
    """
    from yolofleet.tracking.run_catalog import catalog_one

    parent, _, name = open_root(url).url.rstrip("/").rpartition("/")
    root = open_root(parent)
    found = catalog_one(root, name)
    if found is None:
        raise UserError(f"{url}: is the directory of neither a run nor a search; 'yolofleet runs list {parent}'")
    return root, found
