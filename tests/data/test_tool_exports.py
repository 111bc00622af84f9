from __future__ import annotations

from pathlib import Path

import pytest

from data.exports import NAMES, built
from data.tool_exports import EXPORTS, true_boxes
from yolofleet.cli.main import main
from yolofleet.data.dataset import ShardDataset


@pytest.mark.parametrize("tool", EXPORTS)
def test_the_export_of_a_tool_is_sharded_as_it_comes(tmp_path: Path, tool: str) -> None:
    write, annotations, images = EXPORTS[tool]
    write(tmp_path)
    where = images if images == "-" else str(tmp_path / images)
    assert main(["data", "shard", str(tmp_path / annotations), where, str(tmp_path / "out"), "--no-shuffle"]) == 0
    found = list(built(tmp_path / "out").values())
    expected = true_boxes(len(found))
    if tool == "ultralytics":
        expected = [*true_boxes(2), true_boxes(1)[0]]  # each split is drawn from its own first image on
    assert len(found) == (2 if tool == "roboflow" else 3) and found == expected
    names = {name for _, name in ShardDataset(tmp_path / "out").classes}
    assert names == set(NAMES)
