"""``yolofleet models``: what it prints, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import load_table, zoo_names

DOCS = Path(__file__).parents[2] / "docs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_list_as_json_names_every_model_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    models = {entry["name"]: entry for entry in json.loads(printed(capsys, "list", "--json"))}
    assert set(models) == set(zoo_names())
    yolov7 = models["yolov7"]
    assert (yolov7["parameters"], yolov7["parameters_deployed"]) == (37_622_682, 36_905_341)
    assert (yolov7["gflops"], yolov7["gflops_deployed"], yolov7["image_size"]) == (105.7694, 104.5111, 640)
    assert "cost not reproduced" in models["yolov4-tiny-3l"]["note"]


def test_list_has_a_line_for_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list").splitlines()
    assert re.search(r"yolov7-e6e +166\.41 M +151\.69 M +915\.9 +842\.2 +1280", "\n".join(lines))
    assert len(lines) == 2 + len(zoo_names())


def test_show_prints_the_block_table_and_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "yolov7", "--workers", "4")
    assert re.search(r"c3 +elan +down_5 +512 +8 +7 +920,064 +11\.74 +hidden 128, stack 4", text)
    assert "deployed form:   36,905,341 parameters     104.51 GFLOPs" in text
    assert re.search(r"zero2 .*0\.035", text)


def test_show_as_json_is_scaled_and_holds_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(printed(capsys, "show", "yolov7-x-light", "--depth", "1.5", "--json"))
    assert shown["parameters_deployed"] == 71_311_741
    assert sum(block["parameters"] for block in shown["blocks"]) < shown["parameters"]
    assert shown["strides"] == [8, 16, 32]
    assert {entry["strategy"] for entry in shown["memory"]["strategies"]} == {"ddp", "zero1", "zero2"}
    assert shown["table"]["blocks"][4]["stack"] == 6


def test_show_takes_positions_of_rep_conv(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(printed(capsys, "show", "yolov7", "--reparameterize", "none", "--json"))
    assert shown["gflops"] == shown["gflops_deployed"] == 104.5111
    planned = json.loads(printed(capsys, "show", "yolov7", "--reparameterize", "head,first", "--json"))
    assert planned["parameters"] > 37_622_682


def test_show_takes_the_variants_of_the_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--reverse-residual", "--reparameterize", "residual"]
    assert json.loads(printed(capsys, "show", "yolor-w6", *options, "--json"))["parameters"] == 83_846_776
    without = json.loads(printed(capsys, "show", "yolov7-e6e", "--auxiliary", "none", "--json"))
    assert without["num_auxiliary_levels"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["yolov7x"], "no model is called 'yolov7x'; did you mean 'yolov7-x'"),
        (["yolov7", "--depth", "0"], "depth"),
        (["yolov7", "--image-size", "100"], "must be a multiple of its largest stride, 32"),
        (["yolov7", "--precision", "int8"], "'int8' is not one of fp32, fp16, bf16"),
        (["yolov7", "--auxiliary", "partal"], "did you mean 'partial'"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_input_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_the_table_in_the_documentation_is_a_model(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(name: mine.*?)```", (DOCS / "models.md").read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "mine.yaml"
    path.write_text(example[1])
    assert wire(load_table(path)).strides == (8,)
