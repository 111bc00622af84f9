"""docs/extending.md: its data source and its augmentation work as they are written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from yolofleet.data.dataset import ShardDataset

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Write the page's plugins into a folder; returns an environment that names them."""
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, text in blocks:
        (folder / f"{name}.py").write_text(text)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "YOLOFLEET_PLUGINS": "csv_boxes,greyscale"}


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yolofleet", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_source_is_detected_and_chosen_by_name(plugins: dict[str, str], drawn: Path, tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(
        "file,class,x,y,width,height\n000001.jpg,dog,5,6,20,30\n000002.jpg,cat,1,2,30,10\n000001.jpg,cat,1,2,9,9\n"
    )
    for number, choice in enumerate(([], ["--format", "csv"])):
        out = tmp_path / f"out{number}"
        result = run(plugins, "data", "shard", table, drawn / "images", out, *choice)
        assert result.returncode == 0, result.stderr
        dataset = ShardDataset(out)
        assert [name for _, name in dataset.classes] == ["dog", "cat"] and dataset.manifest.num_boxes == 3
    without = {name: value for name, value in plugins.items() if name != "YOLOFLEET_PLUGINS"}
    result = run(without, "data", "shard", table, drawn / "images", tmp_path / "none", "--format", "csv")
    assert result.returncode == 2 and "no format 'csv'" in result.stderr and "YOLOFLEET_PLUGINS" in result.stderr


def test_the_augmentation_is_seen_in_a_job(plugins: dict[str, str], shards: Path, tmp_path: Path) -> None:
    yaml = re.search(r"```yaml\n(hyperparameters:\n  extra_augmentations:.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert yaml is not None
    head = f"name: a\nmodel: {{name: yolov7-tiny}}\ndata: {{train: {shards}, val: {shards}, image_size: 64}}\n"
    digests = []
    for name, tail in (("plain", ""), ("grey", yaml[1].replace("share: 0.1", "share: 1.0"))):
        (tmp_path / f"{name}.yaml").write_text(head + "global_batch_size: 16\n" + tail)
        result = run(plugins, "data", "show", tmp_path / f"{name}.yaml", "--out", tmp_path / name, "--json")
        assert result.returncode == 0, result.stderr
        digests.append(json.loads(result.stdout)["micro_batches"][0]["digest"])
    assert digests[0] != digests[1]
