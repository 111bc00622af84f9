"""Tables: what a user gets wrong is named, with the row, the numbers and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.graph import GraphError
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import ZOO, load_table, resolve, zoo_names, zoo_table
from yolofleet.specs.model import ModelChoice

TABLE = """
name: mine
image_size: 64
activation: silu
blocks:
  - {{name: stem, block: conv, out: 8, stride: 2}}
  - {{name: c2, block: conv, out: 16, stride: 2}}
{rows}
head: {{from: [{head}]}}
anchors: [[8, 8, 16, 16]]
"""


def table(tmp_path: Path, rows: str = "", head: str = "c2") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE.format(rows=rows, head=head))
    return path


def test_a_table_of_one_s_own_is_a_model(tmp_path: Path) -> None:
    graph = wire(load_table(table(tmp_path)))
    assert (graph.strides, graph.lead_channels, graph.max_stride) == ((4,), (16,), 4)


def test_every_table_of_the_zoo_is_short_and_named_as_its_file() -> None:
    assert {"yolov7", "yolov7-tiny", "yolov7-e6e", "yolor-u5", "yolov4", "yolov3-spp"} <= set(zoo_names())
    for path in ZOO.glob("*.yaml"):
        assert zoo_table(path.stem).name == path.stem
        assert len(path.read_text().splitlines()) <= 45


def test_scalings_are_no_tables_of_their_own() -> None:
    for name in ("yolov7-x", "yolov7-e6", "yolov7-d6", "yolov7-e6e"):
        text = (ZOO / f"{name}.yaml").read_text()
        assert "base: " in text
        assert "blocks:" not in text


@pytest.mark.parametrize(
    ("name", "near"), [("yolov7x", "yolov7-x"), ("YOLOv7-E6", "yolov7-e6"), ("yolov7tiny", "yolov7-tiny")]
)
def test_an_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no model is called '{name}'; did you mean '{near}'\\? Known: "):
        resolve(name)


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ("  - {name: a, block: conv, from: b, out: 8}\n  - {name: b, block: conv, from: a, out: 8}", "b",
         "block a: reads 'b': a cycle: a <- b <- a"),
        ("  - {name: a, block: conv, from: a, out: 8}", "a", "block a: reads 'a': a cycle: a <- a"),
        ("  - {name: a, block: conv, from: b, out: 8}\n  - {name: b, block: conv, from: c2, out: 8}", "a",
         "block a: reads 'b': that row comes later; move it up"),
        ("  - {name: a, block: conv, from: c3, out: 8}", "a",
         "block a: reads 'c3', which is not the name of a row; did you mean 'c2'"),
        ("  - {name: a, block: dark, out: 32}", "a",
         r"block a \(dark\): channel mismatch: 16 channels at stride 4 cannot be added to 32 .*reads c2: 16 channels"),
        ("  - {name: a, block: merge_up, from: [c2, stem], out: 8}", "a",
         r"block a \(merge_up\): maps of strides 4, 1 cannot be concatenated .*c2: 16 channels, stride 4, stem: 8"),
        ("  - {name: a, block: merge_up, from: c2, out: 8}", "a", r"block a \(merge_up\): reads 1 input, it needs 2"),
        ("  - {name: a, block: conv, from: c2.second, out: 8}", "a", r"block a \(conv\): c2.second: no such tap"),
        ("  - {name: a, block: conv, out: 8}", "c2", "nothing reads the output of a; drop the row or use it"),
        ("  - {block: conv, out: 8}\n  - {name: conv_2, block: conv, out: 8}", "conv_2", "conv_2: the name is taken"),
        ("  - {name: image, block: conv, out: 8}", "image", "image: the name is taken"),
        ("", "c22", "head reads 'c22', which is not a row's output; did you mean 'c2'"),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_be_names_the_block_and_the_numbers(
    rows: str, head: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=message):
        wire(load_table(table(tmp_path, rows, head)))


def test_names_that_torch_keeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block pop: torch keeps that name for itself"):
        build_model(table(tmp_path, "  - {name: pop, block: conv, out: 8}", "pop"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("  - {name: a, block: conv, outs: 8}", r"row 2 \(a\): block conv has no key 'outs'; did you mean 'out'"),
        ("  - {name: a, block: elam, out: 8}", r"row 2 \(a\): no block is called 'elam'; did you mean 'elan'"),
        ("  - {name: a, block: conv}", "blocks.2.conv.out: is missing"),
        ("  - {name: a, block: elan, hidden: 8, stack: 3, out: 8}", "multiple of 2"),
        ("  - {name: a, block: conv, out: -8}", "greater than or equal to 1"),
        ("  - {name: c2, block: conv, out: 8}", "two rows have the name c2"),
        ("  - {name: a, block: pools, sizes: [9, 5]}", "pool sides must be odd and grow"),
    ],
)
def test_a_wrong_row_names_the_key(rows: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_table(table(tmp_path, rows))


def test_levels_anchors_and_auxiliary_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="head has 2 levels but there are anchors for 1"):
        load_table(table(tmp_path, head="stem, c2"))
    path = tmp_path / "aux.yaml"
    path.write_text("name: aux\nbase: yolov7-w6\nchange: {auxiliary: {out: [8]}}\n")
    with pytest.raises(UserError, match="auxiliary needs 4 rows and 4 widths as the head has, not 4 and 1"):
        load_table(path)


def test_derived_tables_name_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "derived.yaml"
    path.write_text("name: derived\nbase: yolov7\nchange: {elam: {stack: 6}}\n")
    with pytest.raises(UserError, match=r"change\.elam: yolov7 has no row of that name or kind"):
        load_table(path)
    path.write_text("name: derived\nbase: derived.yaml\n")
    with pytest.raises(UserError, match=r"in a cycle: derived\.yaml -> derived\.yaml"):
        load_table(path)
    path.write_text("name: derived\nbase: yolov8\n")
    with pytest.raises(UserError, match="no model is called 'yolov8'"):
        load_table(path)


@pytest.mark.parametrize("text", ["name: new\nformat: 2\n", "name: new\nformat: 2\nbase: yolov7\nnovelty: 1\n"])
def test_a_newer_format_is_refused_with_the_cure(text: str, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(text)
    with pytest.raises(UserError, match=r"format 2 is newer than this version reads \(1\); upgrade yolofleet"):
        load_table(tmp_path / "new.yaml")


def test_a_choice_is_a_name_or_a_spec() -> None:
    for document in ({}, {"name": "yolov7", "spec": "mine.yaml"}):
        with pytest.raises(UserError, match="one of the two"):
            ModelChoice.parse(document, source="job.yaml")
    with pytest.raises(UserError, match=r"job\.yaml: dept: unknown key .* did you mean 'depth'"):
        ModelChoice.parse({"name": "yolov7", "dept": 2}, source="job.yaml")
    with pytest.raises(UserError, match=r"depth.*greater than or equal"):
        ModelChoice.parse({"name": "yolov7", "depth": 0}, source="job.yaml")


def test_auxiliary_heads_can_be_left_out_or_moved() -> None:
    graphs = {
        kind: wire(resolve(ModelChoice(name="yolov7-e6e", auxiliary=kind))) for kind in ("none", "full", "partial")
    }
    assert graphs["none"].auxiliary == ()
    sources = {kind: [block.sources[0] for block in graph.blocks if block.auxiliary] for kind, graph in graphs.items()}
    assert sources["full"] == [("f3", ""), ("f4", ""), ("f5", ""), ("s6", "")]
    assert sources["partial"] == [("f3", "second"), ("f4", "second"), ("f5", "second"), ("s6", "")]
    assert graphs["partial"].table == zoo_table("yolov7-e6e")
    with pytest.raises(UserError, match="partial needs E-ELAN blocks"):
        resolve(ModelChoice(name="yolov7-e6", auxiliary="partial"))
    with pytest.raises(UserError, match="no auxiliary head to change"):
        resolve(ModelChoice(name="yolov7", auxiliary="full"))
