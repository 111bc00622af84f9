"""README's pictures of a run, drawn from a finished one: its terminal, and its page.

    make demo
    python benchmarks/pictures.py demo/runs/quickstart

The rows and events that the run has written pass through the display of `yolofleet train` a second time, with the clock
of the run. The page needs Chromium (apt-get install chromium). Everything is written to docs/images.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from yolofleet.cli.options import result_lines
from yolofleet.cli.run_display import RunDisplay
from yolofleet.registry.release import release_record
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_record import RunRecord, read_run

ROOT = Path(__file__).parents[1]
COLUMNS = 68
LINES = 17
CHARACTER, LINE, FONT = 8.4, 20, 14
"""Width of a character, height of a line and size of the font, in pixels."""
SHOWN_SECONDS = 1.5
LAST_SHOWN = 4
"""So many times as long as any other stands the last frame."""
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)
"""Of the run's steps: when a frame is taken."""
PAGE_PIXELS = (1200, 800)
COLOURS = 64


@dataclass
class Terminal(io.StringIO):
    """What stands in for stderr: a terminal that takes Unicode."""

    encoding: Any = "utf-8"

    def __post_init__(self) -> None:
        super().__init__()


def frames(record: RunRecord, last: list[str]) -> Iterator[list[str]]:
    """Yield the lines of the terminal at some moments of a run; at the end its results."""
    clock = [0.0]
    ours, real_clock, sys.stderr = sys.stderr, time.monotonic, Terminal()
    time.monotonic = lambda: clock[0]
    try:
        typed = [f"$ yolofleet train {record.name}.yaml", f"training {record.num_steps} steps: {record.url}"]
        display = RunDisplay(record.num_steps or 0, 0, "starting Ray")
        wanted = [share * record.step for share in SHARES]
        for row in sorted([*record.events, *record.rows], key=lambda row: str(row["time"])):
            clock[0] = datetime.fromisoformat(str(row["time"])).timestamp()
            if "kind" in row:
                display.take_event(row)
            elif "loss" in row or "val_AP" in row:
                display.show(row)
            if wanted and (
                row.get("kind") == "start" if wanted[0] == 0 else row.get("loss") and row["step"] >= wanted[0]
            ):
                wanted.pop(0)
                yield [*typed, *sys.stderr.getvalue().splitlines(), *display.lines(COLUMNS)]
        yield [*typed, *sys.stderr.getvalue().splitlines(), *display.lines(COLUMNS), "", *last]
    finally:
        sys.stderr, time.monotonic = ours, real_clock


def draw(screens: list[list[str]], title: str) -> str:
    """Return screens as an SVG that shows one after the other; the last one alone where motion is not wanted."""
    width, height = COLUMNS * CHARACTER + 32, LINES * LINE + 60
    slots = len(screens) - 1 + LAST_SHOWN
    last = len(screens) - 1
    style = f"""
      .f {{ visibility: hidden }} .last {{ visibility: visible }}
      @keyframes one {{ 0% {{ visibility: visible }} {100 / slots:.3f}%, 100% {{ visibility: hidden }} }}
      @keyframes many {{ 0% {{ visibility: hidden }} {100 * last / slots:.3f}%, 100% {{ visibility: visible }} }}
      @media (prefers-reduced-motion: no-preference) {{
        .f {{ animation: one {slots * SHOWN_SECONDS:g}s step-end infinite }} .last {{ animation-name: many }}
      }}"""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" role="img" font-size="{FONT}" '
        f'font-family="ui-monospace,Menlo,Consolas,monospace" fill="#e6edf3"><title>{escape(title)}</title>'
        f'<style>{style}</style><rect width="{width:g}" height="{height}" rx="10" fill="#0d1117" stroke="#57606a"/>'
        + "".join(f'<circle cx="{22 + 20 * dot}" cy="20" r="6" fill="#57606a"/>' for dot in range(3))
    ]
    for number, screen in enumerate(screens):
        wrapped = [part for line in screen for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ") or [""]]
        name, delay = ("f last", 0.0) if number == last else ("f", number * SHOWN_SECONDS)
        parts.append(f'<g class="{name}" style="animation-delay:{delay:g}s">')
        for at, line in enumerate(wrapped[-LINES:]):
            if line:
                parts.append(
                    f'<text xml:space="preserve" x="16" y="{56 + at * LINE}" textLength="{len(line) * CHARACTER:.1f}" '
                    f'lengthAdjust="spacingAndGlyphs">{escape(line)}</text>'
                )
        parts.append("</g>")
    return "".join(parts) + "</svg>\n"


def photograph(page: Path, out: Path) -> None:
    """Store the top of a page, as a browser shows it."""
    sys.path.append(str(ROOT / "tests"))
    from browser import Browser

    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        browser.open(page.absolute().as_uri(), width=PAGE_PIXELS[0], height=PAGE_PIXELS[1])
        browser.screenshot(Path(folder) / "whole.png")
        with Image.open(Path(folder) / "whole.png") as whole:
            top = whole.convert("RGB").crop((0, 0, *PAGE_PIXELS))
        top.quantize(COLOURS, dither=Image.Dither.NONE).save(out / "page.png", optimize=True)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="The directory of a finished run.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    directory = RunDirectory(open_storage(arguments.run))
    release = release_record(directory)
    if release is None:
        parser.error(f"{arguments.run} is no finished run")
    base = f"{arguments.run.absolute().parents[1]}/"
    screens = [
        [line.replace(base, "") for line in screen]
        for screen in frames(read_run(directory), list(result_lines(release, "done")))
    ]
    (arguments.out / "terminal.svg").write_text(
        draw(screens, "A run on the terminal, from its first step to its result")
    )
    photograph(Path(release.report), arguments.out)


if __name__ == "__main__":
    main()
