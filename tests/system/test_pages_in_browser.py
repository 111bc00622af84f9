"""Every kind of page in a headless Chromium: no error, nothing too wide or too small, and what can be touched works.

Screenshots lie in the folder that YOLOFLEET_SCREENSHOTS names, else in the test's own. With axe-core (npm, never a part
of the package) its rules are checked, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from browser import Browser, find_chromium
from system.shell import Shell
from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.diagnosis import diagnose
from yolofleet.evaluation.report import render_report
from yolofleet.search.history import Observation
from yolofleet.search.live_page import page_server
from yolofleet.search.report import render_search
from yolofleet.search.results import results_of
from yolofleet.search.trials import Measurement, Trials
from yolofleet.specs.search import SearchSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_page import render_run
from yolofleet.tracking.run_record import read_run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
MOST_BYTES = 3_000_000
SMALLEST_TEXT_PIXELS = 11.0
VIEWS = [(1600, False), (390, True), (390, False), (1600, True)]
TOO_SMALL = """
(() => {
  const found = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement, box = parent.getBoundingClientRect();
    if (!node.data.trim() || !box.width || parent.closest("script")) continue;
    const svg = parent.closest("svg"), scale = svg ? svg.getScreenCTM().a : 1;
    const size = scale * parseFloat(getComputedStyle(parent).fontSize);
    if (size < LEAST - 0.05) found.push([node.data.trim().slice(0, 40), size]);
  }
  return found.slice(0, 5);
})()
""".replace("LEAST", str(SMALLEST_TEXT_PIXELS))
TOO_WIDE = """
(() => {
  const wide = document.documentElement.clientWidth;
  return document.documentElement.scrollWidth <= wide ? [] : [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > wide + 1 && !e.closest(".wide,pre"))
    .map((e) => e.outerHTML.slice(0, 120)).slice(0, 5).concat([`${document.documentElement.scrollWidth} > ${wide}`]);
})()
"""


def eighty_classes() -> EvaluationResult:
    """An evaluation of 80 made-up classes, found more or less well."""
    rng = np.random.default_rng(0)
    objects, found = [], []
    for image in range(120):
        for _ in range(10):
            label = int(rng.integers(80))
            box = [float(value) for value in (*rng.uniform(0, 400, 2), *rng.uniform(10, 200, 2))]
            objects.append(
                {"id": len(objects) + 1, "image_id": image, "category_id": label + 1, "bbox": box, "iscrowd": 0}
            )
            shifted = [box[0] + float(rng.normal(0, 0.07 * box[2])), *box[1:]]
            if rng.random() < 0.3 + 0.6 * label / 80:
                score = float(rng.uniform(0.3, 1))
                found.append({"image_id": image, "category_id": label + 1, "bbox": shifted, "score": score})
            else:
                score = float(rng.uniform(0, 0.6))
                found.append(
                    {"image_id": image, "category_id": label + 1, "bbox": [0.0, 0.0, 20.0, 20.0], "score": score}
                )
    categories = [{"id": number + 1, "name": f"kind of thing-{number + 1:02d}"} for number in range(80)]
    truth = {"images": [{"id": number} for number in range(120)], "categories": categories, "annotations": objects}
    detections = Detections.from_records(found)
    return EvaluationResult(
        average_precision=coco_average_precision(truth, detections), ground_truth=truth, detections=detections
    )


def many_trials(job: Path) -> str:
    """The page of a made-up search: 40 trials of two parameters, some of which failed."""
    parameters = {
        "model.hidden_width": {"choice": [0.25, 0.5, 0.75]},
        "hyperparameters.lr0": {"log_uniform": [1e-3, 0.1]},
    }
    objectives = [{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}]
    document = {"name": "many", "job": yaml.safe_load(job.read_text()), "parameters": parameters}
    spec = SearchSpec.parse({**document, "objectives": objectives, "budget": {"trials": 40}}, source="made up")
    rng, trials = np.random.default_rng(0), Trials(repeats=1)
    for number in range(40):
        width, rate = float(rng.choice([0.25, 0.5, 0.75])), float(10 ** rng.uniform(-3, -1))
        gflops = 2 * width**2 + float(rng.uniform(0.5, 0.7))
        values = {"model.hidden_width": width, "hyperparameters.lr0": rate}
        figures = {"gflops": gflops, "parameters": 3e6 * gflops, "training_petaflops": 10 * gflops}
        ap = 0.2 + 0.2 * width - 0.05 * (np.log10(rate) + 2) ** 2 + 0.02 * float(rng.normal())
        trials.suggest(Observation(values=values, figures=figures))
        trials.measure(number, Measurement(0, 1.0, 100, {"val_AP": float(ap)}, 300.0))
        trials.end(number, "completed" if number % 9 else "failed: CUDA out of memory on a node with a long name")
    return render_search(results_of(spec, trials), {})


@pytest.fixture(scope="module")
def pages(household: Shell, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One page of each kind: those that the commands made of a run and a search, and made-up ones that hold more."""
    find_chromium()
    folder = tmp_path_factory.mktemp("pages")
    runs = household.folder / "runs"
    annotations = [str(drawn / f"images/instances_{part}.json") for part in ("train", "val")]
    household.succeed("data", "check", *annotations, str(drawn / "images/images"), "--html", str(folder / "data.html"))
    household.succeed("models", "compare", "runs/quickstart", "--html", str(folder / "compare.html"))
    household.succeed("models", "show", "yolov7-tiny", "--html", str(folder / "model.html"))
    result = eighty_classes()
    diagnosis = diagnose(result.ground_truth, result.detections).as_json()
    page = render_report(result, title="Evaluation of 80 made-up classes", diagnosis=diagnosis)
    (folder / "eighty.html").write_text(page)
    (folder / "many.html").write_text(many_trials(runs / "quickstart/job.yaml"))
    return {
        "run": runs / "quickstart/report/index.html",
        "search": runs / "my-search/report/index.html",
        "trial": next((runs / "my-search/trials").glob("*/report/index.html")),
        "troubled": troubled_run(runs / "quickstart", folder / "troubled.html"),
        **{name: folder / f"{name}.html" for name in ("data", "compare", "model", "eighty", "many")},
    }


def troubled_run(run: Path, page: Path) -> Path:
    """The page of the same run with a made-up failure, restart, roll-back and departure."""
    record = read_run(RunDirectory(open_storage(run)))
    middle, time = record.step // 2, record.events[0]["time"]
    record.events[1:1] = [
        {"time": time, "kind": "failure", "failure": "worker", "reason": "node a is gone", "reached": middle},
        {**record.events[0], "step": middle - 2},
        {"time": time, "kind": "rolled_back", "to_step": middle + 2, "window": [1, 2], "reason": "loss is NaN"},
        {"time": time, "kind": "left", "step": middle + 4, "reason": "pre-empted"},
    ]
    page.write_text(render_run(record))
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("YOLOFLEET_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_every_page_fits_every_window_and_reports_no_problem(
    pages: Mapping[str, Path], browser: Browser, screenshots: Path
) -> None:
    for name, page in pages.items():
        assert page.stat().st_size < MOST_BYTES, name
        for width, dark in VIEWS:
            browser.open(page.as_uri(), width=width, dark=dark)
            browser.screenshot(screenshots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
            assert browser.evaluate(TOO_WIDE) == [], (name, width)
            assert browser.evaluate(TOO_SMALL) == [], (name, width)
            assert browser.problems == [], name


def test_charts_say_values_to_pointer_and_keyboard_and_series_are_switched(
    pages: Mapping[str, Path], browser: Browser
) -> None:
    for name in ("run", "troubled", "many", "compare", "eighty"):
        browser.open(pages[name].as_uri())
        browser.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true })")
        browser.move(".plot", 0.6, 0.4)
        browser.evaluate("document.querySelector('.plot').focus()")
        browser.press("Home")
        first = browser.evaluate("document.querySelector('.tip').textContent")
        assert any(character.isdigit() for character in first), name
        browser.press("End")
        assert browser.evaluate("document.querySelector('.tip').textContent") != first, name
        browser.press("Escape")
        assert browser.evaluate("document.querySelector('.tip') === null")
    browser.open(pages["run"].as_uri())
    ap = 'figure[aria-label="AP"]'
    browser.move(f"{ap} .plot", 0.95, 0.4)
    assert "AP50" in browser.evaluate("document.querySelector('.tip').textContent")
    assert browser.evaluate("document.querySelectorAll('.cross').length") > 3  # every chart over the steps
    browser.evaluate(f"document.querySelector('{ap} .legend button').click()")
    assert browser.evaluate(f"document.querySelector('{ap} .plot [data-series=\"0\"]').hasAttribute('hidden')")
    browser.move(f"{ap} .plot", 0.9, 0.4)
    assert "AP:" not in browser.evaluate("document.querySelector('.tip').textContent")
    assert browser.problems == []


def test_tables_are_sorted_and_filtered(pages: Mapping[str, Path], browser: Browser) -> None:
    browser.open(pages["eighty"].as_uri())
    column = "[...document.querySelectorAll('#classes tbody tr')].map((r) => Number(r.cells[1].dataset.sort))"
    rising = browser.evaluate(column)
    assert rising == sorted(rising) and len(rising) > 60
    browser.evaluate("document.querySelectorAll('#classes th button')[1].click()")
    assert browser.evaluate(column) == sorted(rising, reverse=True)
    browser.evaluate("document.querySelectorAll('#classes th button')[0].click()")
    names = browser.evaluate("[...document.querySelectorAll('#classes tbody tr')].map((r) => r.cells[0].textContent)")
    assert names == sorted(names)
    browser.evaluate(
        "(f => { f.value = 'kind thing-07'; f.dispatchEvent(new Event('input')) })"
        "(document.querySelector('#classes .filter'))"
    )
    shown = browser.evaluate("[...document.querySelectorAll('#classes tbody tr')].filter((r) => !r.hidden).length")
    assert shown == 1


def test_a_link_leads_from_a_search_to_its_trials_and_back(pages: Mapping[str, Path], browser: Browser) -> None:
    browser.open(pages["search"].as_uri())
    browser.evaluate("document.querySelector('#trials td a').click()")
    browser.wait("document.querySelector('h1')?.textContent.startsWith('Run ') && document.readyState === 'complete'")
    browser.evaluate("[...document.querySelectorAll('header a')].find((a) => a.textContent === 'search').click()")
    browser.wait("document.querySelector('h1')?.textContent === 'Search my-search'")


@pytest.fixture
def served(pages: Mapping[str, Path], tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, RunDirectory]]:
    """A copy of the run, and a server of its page."""
    shutil.copytree(pages["run"].parents[1], tmp_path / "run")
    server = page_server(open_storage(tmp_path / "run"), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, RunDirectory(open_storage(tmp_path / "run"))
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_served_page_follows_the_run_and_keeps_what_was_switched(
    served: tuple[ThreadingHTTPServer, RunDirectory], browser: Browser
) -> None:
    server, run = served
    browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
    browser.evaluate("document.querySelector('.legend button').click()")
    with run:
        run.append_metrics({"step": 987_654, "loss": 0.5, "val_AP": 0.4321})
        run.append_event("failed", reason="a reason of its own")
        run.flush()
    browser.wait("document.querySelector('main').textContent.includes('a reason of its own')")
    assert browser.evaluate("document.querySelector('.legend button').ariaPressed") == "false"
    assert browser.problems == []
    folder = Path(run.url)
    folder.rename(folder.with_name("away"))
    browser.wait("document.querySelector('.live').classList.contains('away')")
    folder.with_name("away").rename(folder)
    browser.wait("!document.querySelector('.live').classList.contains('away')")


def test_axe_finds_nothing_serious(pages: Mapping[str, Path], browser: Browser, tmp_path: Path) -> None:
    script = axe_core(tmp_path)
    for name, page in pages.items():
        for dark in (False, True):
            browser.open(page.as_uri(), width=390 if dark else 1600, dark=dark)
            browser.evaluate(script)
            found = browser.evaluate(
                "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations"
                ".filter((v) => ['serious', 'critical'].includes(v.impact))"
                ".map((v) => v.id + ': ' + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(' | ')))"
            )
            assert found == [], name


def axe_core(folder: Path) -> str:
    """The text of axe-core, fetched by npm into a folder of its own; the test is skipped where that fails."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("NO NPM: axe-core is not run over the pages")
    command = [npm, "install", "--prefix", str(folder), "--no-save", "--ignore-scripts", "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"NO AXE-CORE: npm could not fetch it: {done.stderr[-300:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()
