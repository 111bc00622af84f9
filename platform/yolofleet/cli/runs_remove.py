"""``yolofleet runs remove`` and ``gc``: takes away what is no longer needed; only with ``--yes``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, TrackingUri, print_result
from yolofleet.cli.runs import StorageUrl, find_run, open_runs, read_states
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.durations import parse_duration
from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED, UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.storage import Storage
    from yolofleet.tracking.run_catalog import StoredRun

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Really remove; without it, nothing is changed.")]
Registered = Annotated[
    bool, typer.Option("--registered", help="Also remove runs that registered versions were made from.")
]


def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Directories of runs or searches.")],
    yes: Yes = False,
    registered: Registered = False,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> int:
    """Remove runs or searches in any state that nobody trains. Without --yes, only show what would be removed."""
    from yolofleet.registry.run_sources import RunSources

    cleaning = Cleaning(yes=yes)
    for root, found in [find_run(url) for url in runs]:  # all are there before one goes
        reason = None if registered else RunSources.ask([found], root, tracking_uri).objection(root, found)
        cleaning.take(root, found, reason)
    return cleaning.report(as_json=as_json)


def gc(
    storage: StorageUrl,
    keep_last: Annotated[int | None, typer.Option("--keep-last", min=1, help="Keep the newest N runs.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Only runs that have not changed for this long: 12h, 30d, 8w.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="States to remove: finished, failed, killed, interrupted. Default: finished."),
    ] = None,
    trials: Annotated[
        bool, typer.Option("--trials", help="Also remove the trials' checkpoints of finished searches that are kept.")
    ] = False,
    yes: Yes = False,
    registered: Registered = False,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> int:
    """Remove old runs and searches, and leftovers. Without --yes, only show what would be removed."""
    from yolofleet.registry.run_sources import RunSources
    from yolofleet.tracking.run_catalog import catalog
    from yolofleet.tracking.run_removal import RAY_FOLDER, TRIAL_CHECKPOINTS, Candidate, Retention, folders_matching

    rule = Retention(keep_last, _seconds(older_than), _removable(state))
    root = open_runs(storage)
    runs = {run.name: run for run in catalog(root)}
    figures = dict(zip(runs, read_states(root, list(runs.values())), strict=True))
    candidates = [Candidate(run.name, run.kind, figures[run.name].state, run.changed_at) for run in runs.values()]
    has_rule = keep_last is not None or older_than is not None
    chosen = [entry for entry in rule.expired(candidates, time.time()) if has_rule or entry.kind == "leftover"]
    sources = RunSources() if registered else RunSources.ask([runs[entry.name] for entry in chosen], root, tracking_uri)
    cleaning = Cleaning(yes=yes)
    for entry in chosen:
        cleaning.take(root, runs[entry.name], sources.objection(root, runs[entry.name]))
    for run in (run for run in runs.values() if run.name not in cleaning.names):
        folders = folders_matching(run, RAY_FOLDER)
        if trials and run.kind == "search" and figures[run.name].state == "FINISHED":
            folders |= folders_matching(run, TRIAL_CHECKPOINTS)
        if folders:
            cleaning.take_folders(root, run, folders)
    if not has_rule:
        note("no rule is given (--keep-last, --older-than), so only leftovers are removed")
    return cleaning.report(as_json=as_json)


def _seconds(older_than: str | None) -> float | None:
    try:
        return None if older_than is None else parse_duration(older_than)
    except ValueError as error:
        raise UserError(f"--older-than {error}") from None


def _removable(states: list[str] | None) -> frozenset[str]:
    from yolofleet.tracking.run_catalog import INTERRUPTED

    known = {"FINISHED", "FAILED", "KILLED", INTERRUPTED}
    wanted = {word.upper() for word in states or ["finished"]}
    if unknown := sorted(wanted - known):
        raise UserError(f"--state {unknown[0].lower()}: is not one of {', '.join(sorted(known)).lower()}")
    return frozenset(wanted)


@dataclass
class Cleaning:
    """Removes, or only says what it would remove, and counts."""

    yes: bool
    names: set[str] = field(default_factory=set)
    """Runs that go as a whole."""
    entries: list[dict[str, Any]] = field(default_factory=list)

    def take(self, root: Storage, run: StoredRun, objection: str | None) -> None:
        """Remove a run, unless something objects."""
        from yolofleet.tracking.run_removal import remove_run

        self.names.add(run.name)
        storage = root.child(run.name)
        self._act(storage, run.kind, run.size_bytes, objection, lambda: remove_run(storage, note))

    def take_folders(self, root: Storage, run: StoredRun, folders: dict[str, int]) -> None:
        """Remove some folders of a run."""
        from yolofleet.tracking.run_removal import remove_folders

        storage = root.child(run.name)
        kinds = ", ".join(sorted({name.split("/")[0] for name in folders}))
        what = f"{plural(len(folders), 'folder')} ({kinds})"
        self._act(storage, what, sum(folders.values()), None, lambda: remove_folders(storage, list(folders), note))

    def _act(
        self, storage: Storage, what: str, size_bytes: int, objection: str | None, action: Callable[[], None]
    ) -> None:
        from yolofleet.tracking.run_removal import is_in_use

        entry = {"url": storage.url, "what": what, "size_bytes": size_bytes, "removed": False, "problem": objection}
        self.entries.append(entry)
        if objection is None and (holder := is_in_use(storage)) is not None and not self.yes:
            entry["problem"] = f"is in use by {holder}"
        if not self.yes or entry["problem"] is not None:
            return
        try:
            action()
            entry["removed"] = True
        except UserError as error:
            entry["problem"] = str(error)

    def report(self, *, as_json: bool) -> int:
        """Print what was removed, or would be; returns the exit code."""
        print_result(self.entries, self._lines(), as_json=as_json)
        meant = [entry for entry in self.entries if entry["problem"] is None]
        if not self.yes and meant:
            note("nothing was changed; add --yes to remove")
        return EXIT_WORK_FAILED if self.yes and len(meant) < len(self.entries) else EXIT_DONE

    def _lines(self) -> Iterator[str]:
        verb = "removed" if self.yes else "would go"
        for entry in self.entries:
            stays = entry["problem"] is not None
            why = f": {entry['problem']}" if stays else ""
            yield f"{'stays' if stays else verb:<9} {format_bytes(entry['size_bytes']):>8}  {entry['url']}" + (
                f"  {entry['what']}{why}" if entry["what"] != "run" or stays else ""
            )
        freed = sum(entry["size_bytes"] for entry in self.entries if entry["problem"] is None)
        yield f"{verb}: {format_bytes(freed)} in all" if self.entries else "nothing to remove"
