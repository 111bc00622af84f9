"""``yolofleet demo``: from nothing to a model that finds what it was shown, in minutes."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from yolofleet.cli.options import JsonOption, Verbose, print_result, result_lines
from yolofleet.core.errors import is_installed
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.terminal import note, show

JOB = Path(__file__).parents[1] / "specs" / "jobs" / "quickstart.yaml"
NUM_IMAGES = 1500


def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for everything that the demo makes.")] = Path(
        "demo"
    ),
    verbose: Verbose = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a dataset, make shards, train a small detector on two workers, evaluate and register it.

    Without the extra `cluster` it trains in this process; without the extra `server` it registers nothing. If it was
    stopped, run the same command again.
    """
    from yolofleet.cli.data import shard, synth
    from yolofleet.cli.train import run_job
    from yolofleet.specs.job import JobSpec

    begin = time.monotonic()
    images = folder / "images"
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what the steps print is no part of the result
        note("1 of 3: drawing circles, squares and triangles")
        if not (images / "instances_val.json").exists():
            synth(images, NUM_IMAGES, seed=1)
        note("2 of 3: packing images and boxes into shards")
        for split in ("train", "val"):
            if not (folder / "shards" / split / MANIFEST_NAME).exists():
                shard(str(images / f"instances_{split}.json"), str(images / "images"), str(folder / "shards" / split))
    launcher = "ray" if is_installed("ray") else "process"
    where = "on two workers" if launcher == "ray" else "in this process (the extra cluster brings Ray)"
    note(f"3 of 3: training a narrow YOLOv7-tiny {where}: the longest part")
    changes = [f"data.{split}={folder / 'shards' / split}" for split in ("train", "val")]
    changes += [f"storage={folder / 'runs'}"]
    changes += [] if is_installed("mlflow") else ["tracking.register_as=null"]
    changes += [] if launcher == "ray" else ["cluster.workers=1"]
    spec = JobSpec.load(JOB, changes)
    record, headline = run_job(spec, launcher, verbose=verbose)
    print_result(asdict(record), result_lines(record, headline), as_json=as_json)
    if as_json:
        return
    show(f"\nThat took {time.monotonic() - begin:.0f} s. Open the page in a browser:")
    show(f"  {Path(record.report).as_uri()}")
    show("Next, find objects in images:")
    source = [record.model or f"{folder / 'runs' / spec.name}", str(images / "images" / "000009.jpg")]
    options = ["--tracking-uri", record.mlflow] if record.model and record.mlflow else []
    show(f"  {_command()} {shlex.join(['predict', *source, '--out', 'predictions', *options])}")


def _command() -> str:
    """Return how this program is called: as it was typed, or its name where the shell found it by that."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m yolofleet"
    return "yolofleet" if path.is_absolute() and shutil.which("yolofleet") else shlex.quote(sys.argv[0])
