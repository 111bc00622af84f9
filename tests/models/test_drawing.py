"""Drawings of models hold all that the table says; nothing lies on anything else, and text is readable on a phone."""

from __future__ import annotations

import re
import shlex
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.models.drawing import CHARACTER, WIDTH, draw_model
from yolofleet.models.graph import Conv
from yolofleet.models.scaling_drawing import Figures, draw_scaling, scaling_columns
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve, zoo_names, zoo_table
from yolofleet.specs.model import ModelChoice, ModelTable

DOCS = Path(__file__).parents[2] / "docs"
PLACED = re.compile(r"yolofleet models show .+ --draw(?:-scaling)? (\S+\.svg)")
SVG = "{http://www.w3.org/2000/svg}"
Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom."""


def elements(svg: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """The elements of one tag, those of one class only if it is given."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}{tag}")
    return [element for element in found if not kind or kind in element.get("class", "").split()]


def rectangle(element: ElementTree.Element) -> Rectangle:
    x, y = float(element.get("x", 0)), float(element.get("y", 0))
    return x, y, x + float(element.get("width", 0)), y + float(element.get("height", 0))


def text_rectangle(element: ElementTree.Element) -> Rectangle:
    """Where a text lies at most, in the widest common font."""
    kinds = element.get("class", "").split()
    size = 11.5 if "small" in kinds else 13
    x, y = float(element.get("x", 0)), float(element.get("y", 0))
    width = CHARACTER * size * len(element.text or "")
    left = x - width if "end" in kinds else x - width / 2 if "middle" in kinds else x
    return left, y - 0.75 * size, left + width, y


def overlaps(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] - 0.1 and b[0] < a[2] - 0.1 and a[1] < b[3] - 0.1 and b[1] < a[3] - 0.1


def check_readable(svg: str) -> None:
    """No text is small, leaves the drawing, or lies on another one; no box lies on another one."""
    sizes = [float(size) for size in re.findall(r"font-size:([\d.]+)px", svg)]
    assert min(sizes) * (390 - 32) / WIDTH >= 11  # a phone, with the margins of a page
    height = float(ElementTree.fromstring(svg).get("height", 0))
    texts = [text_rectangle(element) for element in elements(svg, "text")]
    assert all(0 <= left and right <= WIDTH and 0 <= top and bottom <= height for left, top, right, bottom in texts)
    for a, b in combinations(texts, 2):
        assert not overlaps(a, b), (a, b)
    for kind in ("box", "alone", "cell"):
        boxes = [rectangle(element) for element in elements(svg, "rect", kind)]
        assert all(not overlaps(a, b) for a, b in combinations(boxes, 2))
        assert all(0 <= left and right <= WIDTH for left, _, right, _ in boxes)


def check_whole(svg: str, table: ModelTable) -> None:
    """Every block has a box, every layer a square, every connection a wire; RepConv and taps are marked."""
    graph = wire(table)
    legend = len({*elements(svg, "rect", "cell")}) - sum(len(block.graph.nodes) for block in graph.blocks)
    assert 1 <= legend <= 12
    assert len(elements(svg, "rect", "box")) == sum(not block.auxiliary for block in graph.blocks)
    assert len(elements(svg, "rect", "alone")) == len(graph.auxiliary)
    layers = [node.layer for block in graph.blocks for node in block.graph.nodes if isinstance(node.layer, Conv)]
    in_legend = {layer.identity for layer in layers if layer.rep}
    assert len(elements(svg, "rect", "rep")) == sum(layer.rep for layer in layers) + len(in_legend)
    assert len(elements(svg, "rect", "identity")) == sum(layer.identity for layer in layers) + (True in in_legend)
    num_connections = sum(len(block.sources) for block in graph.blocks)
    assert len(elements(svg, "polyline")) == num_connections + bool(graph.auxiliary)
    assert len(elements(svg, "polyline", "tap")) == len(graph.auxiliary) + bool(graph.auxiliary)
    texts = [element.text or "" for element in elements(svg, "text")]
    for stride in graph.strides:
        assert f"lead head /{stride}" in texts
    for row in table.blocks:
        assert row.name is None or any(text.startswith(f"{row.name} {row.block}") for text in texts)


@pytest.mark.parametrize("name", zoo_names())
def test_every_model_of_the_zoo_is_drawn_whole_and_readable(name: str) -> None:
    table = zoo_table(name)
    svg = draw_model(table)
    check_readable(svg)
    check_whole(svg, table)
    assert svg == draw_model(table)


@pytest.mark.parametrize(
    "choice",
    [
        {"name": "yolov7", "depth": 2.5},
        {"name": "yolov7", "reparameterize": "planned"},
        {"name": "yolov7-x-light", "reparameterize": ["first+identity", "second+identity"]},
        {"name": "yolor-w6", "reparameterize": ["residual"], "reverse_residual": True},
        {"name": "yolov7-e6e", "auxiliary": "none", "depth": 3.0},
        {"name": "yolov7-e6e", "auxiliary": "full"},
    ],
)
def test_scaled_and_reparameterised_models_are_drawn_whole(choice: dict[str, object]) -> None:
    table = resolve(ModelChoice.parse(choice, source="test"))
    svg = draw_model(table)
    check_readable(svg)
    check_whole(svg, table)


def test_both_groups_of_e_elan_are_seen_and_the_partial_tap_leaves_the_second() -> None:
    svg = draw_model(zoo_table("yolov7-e6e"))
    groups = [rectangle(element) for element in elements(svg, "rect", "group")]
    assert len(groups) == 2 * sum(block.kind == "elan" for block in wire(zoo_table("yolov7-e6e")).blocks) + 1
    starts = [float((wire.get("points") or "").split()[0].split(",")[1]) for wire in elements(svg, "polyline", "tap")]
    seconds = groups[1:-1:2]
    on_second = [any(top <= y <= bottom for _, top, _, bottom in seconds) for y in starts[:-1]]
    assert on_second == [True, True, True, False]  # the coarsest level taps the pyramid pooling
    whole = draw_model(resolve(ModelChoice.parse({"name": "yolov7-e6e", "auxiliary": "full"}, source="test")))
    starts = [float((wire.get("points") or "").split()[0].split(",")[1]) for wire in elements(whole, "polyline", "tap")]
    assert not any(top <= y <= bottom for _, top, _, bottom in seconds for y in starts[:-1])


def test_a_name_of_strangers_is_text_and_a_long_one_is_cut() -> None:
    table = zoo_table("yolov7-tiny").model_copy(update={"name": "<script>" + "x" * 200})
    svg = draw_model(table)
    assert "<script>" not in svg
    check_readable(svg)


def test_table_3_is_drawn_side_by_side() -> None:
    columns = scaling_columns(zoo_table("yolov7-x-light"), depth=1.5, transition_width=None, hidden_width=None)
    assert [column.title for column in columns] == ["base", "depth alone", "compound"]
    assert [dict(column.factors)["width"] for column in columns] == [1.0, 1.0, 1.25]
    blocks = [next(b for b in wire(column.table).blocks if b.name == "c2") for column in columns]
    assert [Figures.of(block) for block in blocks] == [
        Figures(4, 256, 256),
        Figures(6, 320, 256),
        Figures(6, 320, 320),
    ]
    svg = draw_scaling(zoo_table("yolov7-x-light"), depth=1.5)
    check_readable(svg)
    texts = [element.text for element in elements(svg, "text")]
    assert {"47.0 M", "58.2 M", "71.3 M"} <= {*texts}
    num_blocks = sum(block.kind == "elan" for block in wire(zoo_table("yolov7-x-light")).blocks)
    assert len(elements(svg, "rect", "conv")) == num_blocks * (4 + 6 + 6) + 1


@pytest.mark.parametrize(
    ("name", "factors", "titles"),
    [
        ("yolov7", {"depth": 2.0, "transition_width": 1.0}, ["base", "depth alone"]),
        ("yolov7", {"transition_width": 1.25, "hidden_width": 1.25}, ["base", "scaled"]),
        ("yolov7", {"depth": 0.5}, ["base", "depth alone", "compound"]),
        ("yolov7-e6e", {"depth": 2.0}, ["base", "depth alone", "compound"]),
        ("yolor-d6", {"depth": 2.0, "transition_width": 1.25}, ["base", "depth alone", "scaled"]),
        ("yolov7-tiny", {"depth": 8.0}, ["base", "depth alone", "compound"]),
    ],
)
def test_any_scaling_is_drawn_readable(name: str, factors: dict[str, float], titles: list[str]) -> None:
    table = zoo_table(name)
    given = {"depth": 1.0, "transition_width": None, "hidden_width": None} | factors
    assert [column.title for column in scaling_columns(table, **given)] == titles  # type: ignore[arg-type]
    check_readable(draw_scaling(table, **factors))


@pytest.mark.parametrize(("name", "depth"), [("yolov7", 1.0), ("yolov4-tiny", 2.0)])
def test_a_scaling_that_changes_nothing_is_refused(name: str, depth: float) -> None:
    with pytest.raises(UserError, match="no factor changes it"):
        draw_scaling(zoo_table(name), depth=depth)


def test_the_drawings_of_the_page_are_what_its_commands_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "models.md").read_text()
    commands = [found for found in PLACED.finditer(page) if "[" not in found[0]]
    assert {found[1] for found in commands} == {path.name for path in (DOCS / "drawings").glob("*.svg")}
    for found in commands:
        assert main(shlex.split(found[0])[1:]) == 0
        assert (tmp_path / found[1]).read_text() == (DOCS / "drawings" / found[1]).read_text(), found[0]
        assert f"](drawings/{found[1]})" in page


def test_a_drawing_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "yolov7-tiny", "--draw", str(tmp_path / "none" / "x.svg")]) == 2
    assert "x.svg: cannot be written: No such file or directory" in capsys.readouterr().err
