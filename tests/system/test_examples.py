"""The notebook and the examples: run where this machine can, checked as far as it goes where they need a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import typer

from system.pages import ROOT
from system.shell import Shell, wait_for
from yolofleet.cli.commands import app
from yolofleet.specs.job import JobSpec
from yolofleet.specs.promotion import PromotionPolicy
from yolofleet.specs.search import load_search

EXAMPLES = ROOT / "examples"
NOTEBOOK = ROOT / "notebooks" / "first-steps.ipynb"
LISTED = re.findall(r"\]\(([\w.-]+)\)", (EXAMPLES / "README.md").read_text())
RUNNER = """
import json, sys
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        *lines, last = cell["source"].splitlines()
        source = cell["source"].replace("EPOCHS = 12", "EPOCHS = 1").replace("--images 200", "--images 40")
        exec(compile(source, cell["id"], "exec"), globals())
        if last.isidentifier():  # what a notebook shows below the cell
            shown = eval(last)
            if hasattr(shown, "_repr_png_"):
                assert shown._repr_png_().startswith(b"\\x89PNG")
            print(cell["id"], repr(shown))
"""


def test_every_example_is_listed() -> None:
    assert sorted(LISTED) == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".yaml"))


def test_the_specs_are_valid() -> None:
    assert JobSpec.load(EXAMPLES / "fine-tune.yaml").initial_weights == "yolov7.pt"
    assert PromotionPolicy.load(EXAMPLES / "promotion.yaml").lineage
    for name in ("ablation", "search-under-latency"):
        assert load_search(EXAMPLES / f"{name}.yaml").budget.trials


@pytest.mark.parametrize("name", [name for name in LISTED if name.endswith(".sh")])
def test_a_script_holds_whole_command_lines(name: str) -> None:
    script = EXAMPLES / name
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    lines = [line.strip() for line in script.read_text().splitlines() if line.strip().startswith("yolofleet ")]
    assert lines
    for line in lines:
        words = shlex.split(line)[1:]
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(str(command.name), words)  # a wrong argument or option raises


@pytest.mark.system
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout and "Detector of 3 classes" in done.stdout and "Prediction of" in done.stdout
    assert (tmp_path / "shapes.safetensors").is_file()


def test_the_notebook_is_stored_without_results() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablation", "search-under-latency"])
def test_a_search_is_planned(name: str, shell: Shell, drawn: Path) -> None:
    data = [f"job.data.{part}={drawn / 'shards' / part}" for part in ("train", "val")]
    limits = ["constraints.latency_milliseconds.max=10000"] if name == "search-under-latency" else []
    plan = json.loads(shell.succeed("tune", str(EXAMPLES / f"{name}.yaml"), "--plan", "--json", *data, *limits))
    assert plan["candidates"] and not (shell.folder / "demo").exists()


@pytest.mark.system
@pytest.mark.slow
def test_own_data_and_the_augmentation(household: Shell) -> None:
    """The script runs as it stands but for the length of its training; the plugin changes what the network sees."""
    script = (EXAMPLES / "own-data.sh").read_text()
    for words in [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("yolofleet ")]:
        short = ["--launcher", "process", "epochs=0.1", "cluster.workers=1"] if words[0] == "train" else []
        household.succeed(*words, *short)
    plugin = {"PYTHONPATH": f"{EXAMPLES}:{ROOT / 'platform'}", "YOLOFLEET_PLUGINS": "greyscale"}
    shell = Shell(household.folder, plugin)
    step = "hyperparameters.extra_augmentations=[{name: greyscale, share: 1.0}]"
    seen = [json.loads(shell.succeed("data", "show", "job.yaml", *more, "--json")) for more in ((), (step,))]
    assert seen[0]["micro_batches"][0]["digest"] != seen[1]["micro_batches"][0]["digest"]


@pytest.mark.system
@pytest.mark.slow
def test_detections_are_served(household: Shell) -> None:
    command = [sys.executable, str(EXAMPLES / "serve.py"), "runs/quickstart", "0"]
    server = subprocess.Popen(command, cwd=household.folder, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = wait_for(server.stdout.readline, what="the server").strip()
        image = (household.folder / "a.jpg").read_bytes()
        with urllib.request.urlopen(address, data=image, timeout=60) as answer:
            assert isinstance(json.load(answer), list)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address, data=b"no image", timeout=60)
    finally:
        server.kill()
        server.wait()
