"""Every part of one's own on the page works in the real commands, as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from system.pages import ROOT, shell_lines
from system.shell import Shell, rows, write_job

pytestmark = pytest.mark.system
PAGE = (ROOT / "docs" / "extending.md").read_text()


def write_files(folder: Path) -> list[str]:
    """Write the files that the page shows; returns the names of the plugins."""
    plugins = []
    for language, name, body in re.findall(r"^```(python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```", PAGE, re.M | re.S):
        path = folder / ("plugins" if language == "python" else "") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
        if language == "python":
            plugins.append(path.stem)
    return plugins


@pytest.fixture(scope="module")
def extended(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("extended")
    plugins = write_files(folder)
    assert f"YOLOFLEET_PLUGINS={','.join(plugins)}" in PAGE
    return Shell(folder, {"PYTHONPATH": str(folder / "plugins"), "YOLOFLEET_PLUGINS": ",".join(plugins)})


def test_a_block_is_counted_and_scaled(extended: Shell) -> None:
    counts = [
        json.loads(extended.succeed("models", "show", "ghostly.yaml", "--depth", depth, "--json"))["parameters"]
        for depth in ("1.0", "2.0")
    ]
    assert 0 < counts[0] < counts[1]


def test_a_source_is_detected_and_read(extended: Shell, drawn: Path) -> None:
    document = json.loads((drawn / "images/instances_val.json").read_text())
    files = {image["id"]: image["file_name"] for image in document["images"]}
    lines = ["file,class,x,y,width,height"]
    lines += [
        ",".join(map(str, (files[entry["image_id"]], f"class {entry['category_id']}", *entry["bbox"])))
        for entry in document["annotations"]
        if not entry["iscrowd"]
    ]
    (extended.folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    extended.succeed("data", "shard", "boxes.csv", str(drawn / "images/images"), "shards/csv")
    found = json.loads(extended.succeed("data", "inspect", "shards/csv", "--json"))
    assert found["num_boxes"] == len(lines) - 1


def test_a_run_with_all_of_them_trains_and_exports(extended: Shell, drawn: Path) -> None:
    job = write_job(
        extended.folder,
        drawn,
        name="extended",
        epochs=0.2,
        cluster__workers=1,
        model={"spec": "ghostly.yaml"},
        data__image_size=64,
        assignment={"assigner": "wide"},
        hyperparameters__extra_augmentations=[{"name": "greyscale", "share": 1.0, "strength": 1.0}],
    )
    extended.succeed("train", str(job), "--launcher", "process")
    assert rows(extended.folder / "runs/extended/metrics.jsonl")
    extended.succeed("export", "runs/extended", "summary.json", "--format", "summary")
    assert json.loads((extended.folder / "summary.json").read_text())["parameters"] > 0
    plain = Shell(extended.folder)
    refused = plain.run("train", str(job), "--launcher", "process")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert "YOLOFLEET_PLUGINS" in refused.stderr


def test_the_commands_of_the_page_run(extended: Shell, drawn: Path) -> None:
    (extended.folder / "images").symlink_to(drawn / "images/images")
    (extended.folder / "my-detector").symlink_to(extended.folder / "runs/extended/model")
    lines = [line.text for line in shell_lines(ROOT / "docs" / "extending.md")]
    assert len(lines) == 3
    for line in lines:
        extended.succeed(*shlex.split(line)[1:])


def test_an_algorithm_chooses_the_trials(extended: Shell, drawn: Path) -> None:
    job = write_job(extended.folder, drawn, name="searched", epochs=0.2, cluster__workers=1)
    (extended.folder / "space.yaml").write_text(
        f"name: middling\njob: {job.name}\nparameters: {{hyperparameters.lr0: {{uniform: [0.001, 0.003]}}}}\n"
        "algorithm: {name: middle}\nbudget: {trials: 3}\n"
    )
    plan = extended.run("tune", "space.yaml", "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "chosen by middle" in plan.stderr
