from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolofleet.cli.data import _inspection_lines
from yolofleet.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["data", "synth", str(folder), "--images", "20", "--image-size", "64", "--json"]) == 0
    return folder


def test_from_drawing_to_inspecting(capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path) -> None:
    annotations, images, out = drawn / "instances_train.json", drawn / "images", tmp_path / "out"
    code, text, _ = run(capsys, "check", annotations, images, "--strict", "--json", "--html", tmp_path / "page.html")
    assert code == 0 and json.loads(text)["usable"] == 16
    assert "<b>16 of 16</b>" in (tmp_path / "page.html").read_text()
    code, text, _ = run(capsys, "shard", annotations, images, out, "--shard-bytes", "20KB", "--json")
    built = json.loads(text)
    assert code == 0 and built["images"] == 16 and built["shards"] > 1 and built["skipped"] == 0
    code, text, _ = run(capsys, "inspect", out, "--json")
    found = json.loads(text)
    assert code == 0 and found["verified"] and found["digest"] == built["digest"]
    assert found["num_boxes"] == built["boxes"] == sum(found["class_counts"].values())
    code, text, _ = run(capsys, "inspect", out)
    assert code == 0 and "every digest is right" in text and "boxes by class" in text


def test_counts_are_shown_in_the_order_of_numbers_or_the_most_first() -> None:
    facts = {"url": "x", "digest": "", "verified": True, "num_images": 1, "shards": 1, "bytes": 1, "image_sizes": {}}
    for names, order in ((["10", "9", "2"], ["2", "9", "10"]), (["a", "2"], ["2", "a"]), (["²", "9" * 5000], None)):
        counts = {name: number for number, name in enumerate(names, start=1)}
        lines = list(_inspection_lines({**facts, "class_counts": counts, "objects_per_image": {}, "box_sides": {}}))
        assert [line.split()[0] for line in lines[3 : 3 + len(names)]] == (order or names)


def test_damage_is_found_and_reported(capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path) -> None:
    run(capsys, "shard", drawn / "instances_val.json", drawn / "images", tmp_path)
    shard = tmp_path / "shards" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 0xFF
    shard.write_bytes(data)
    code, text, errors = run(capsys, "inspect", tmp_path)
    assert code == 1 and "shard_damaged" in errors and "damaged" in text


def test_a_strict_check_fails_on_any_problem(
    capsys: pytest.CaptureFixture[str], test_data: Path, tmp_path: Path
) -> None:
    hostile = test_data / "hostile"
    arguments = ("check", hostile / "annotations" / "all_images.json", hostile / "images")
    code, text, errors = run(capsys, *arguments, "--html", tmp_path / "page.html")
    assert code == 0 and "21 of 30 images can be used" in text and "drop: image_too_large x 3" in errors
    page = (tmp_path / "page.html").read_text()
    problematic = page[page.index('id="images-with-problems"') : page.index('id="samples"')]
    assert problematic.count("<figure>") == 15 and "data:image/jpeg" in problematic and "://" not in page
    assert run(capsys, *arguments, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "missing.json", "."], "missing.json"),
        (["check", "{annotations}/truncated.json", "{images}"], "no JSON at line 1, column 894"),
        (["check", "{annotations}/ok.json"], "the folder of images is missing"),
        (["check", "{annotations}/ok.json", "{images}", "--format", "coko"], "no format 'coko'; did you mean 'coco'?"),
        (["shard", "{annotations}/ok.json", "{out}/nowhere", "{out}"], "no files here"),
        (["shard", "{annotations}/ok.json", "{images}", "{out}", "--shard-bytes", "many"], "is not a size"),
        (["shard", "{annotations}/ok.json", "{images}", "{out}", "--split", "0.5"], "0.0-0.9"),
        (["shard", "{annotations}/ok.json", "{images}", "{out}", "--longest-side", "64"], "--reencode QUALITY"),
        (["shard", "{annotations}/ok.json", "{images}", "ftp://x/y"], "unknown scheme"),
        (["inspect", "{out}"], "no dataset here"),
        (["show", "{out}/missing.yaml", "--out", "{out}"], "missing.yaml"),
    ],
)
def test_wrong_input_is_one_readable_message(
    capsys: pytest.CaptureFixture[str], test_data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    hostile = test_data / "hostile"
    folders = {"annotations": hostile / "annotations", "images": hostile / "images", "out": tmp_path}
    code, text, errors = run(capsys, *(argument.format(**folders) for argument in arguments))
    assert code == 2 and text == "" and message in errors and "Traceback" not in errors


@pytest.fixture
def job(drawn: Path, tmp_path: Path) -> Path:
    for part in ("train", "val"):
        assert main(["data", "shard", f"{drawn}/instances_{part}.json", f"{drawn}/images", f"{tmp_path}/{part}"]) == 0
    path = tmp_path / "job.yaml"
    path.write_text(
        f"data: {{train: {tmp_path}/train, val: {tmp_path}/val, image_size: 64}}\n"
        "name: shown\nmodel: {name: yolov7-tiny}\nrecipe: tiny\nepochs: 1\nglobal_batch_size: 2\nmicro_batch_size: 2\n"
    )
    return path


def test_only_steps_of_the_job_can_be_shown(capsys: pytest.CaptureFixture[str], job: Path, tmp_path: Path) -> None:
    code, _, errors = run(capsys, "show", job, "--step", 10_000, "--out", tmp_path / "seen")
    assert code == 2 and "the job has" in errors and not (tmp_path / "seen").exists()
    code, text, _ = run(capsys, "show", job, "--step", 1, "--out", tmp_path / "seen")
    assert code == 0 and Path(text.strip()).stat().st_size > 0


def test_a_file_instead_of_a_folder_is_an_error(capsys: pytest.CaptureFixture[str], job: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    for arguments in (("show", job, "--out", file), ("show", job, "--out", file / "below"), ("synth", file)):
        code, _, errors = run(capsys, *arguments)
        assert code == 2 and str(file) in errors and "Traceback" not in errors
    assert file.read_bytes() == b"mine"


def test_the_images_of_a_dataset_are_shown(capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path) -> None:
    """Without a job: as many as asked for, spread over the dataset, on sheets of sixteen."""
    run(capsys, "shard", drawn / "instances.json", drawn / "images", tmp_path / "shards")
    code, text, _ = run(capsys, "show", tmp_path / "shards", "--out", tmp_path / "shown", "--count", "18", "--json")
    first, second = json.loads(text)["images"]
    assert code == 0 and (len(first["keys"]), len(second["keys"])) == (16, 2)
    assert len({*first["keys"], *second["keys"]}) == 18
    assert all(Path(sheet["file"]).read_bytes().startswith(b"\x89PNG") for sheet in (first, second))
    code, _, errors = run(capsys, "show", drawn, "--out", tmp_path / "shown")
    assert code == 2 and "yolofleet data shard" in errors
    code, _, errors = run(capsys, "show", tmp_path / "shards", "epochs=3", "--out", tmp_path / "shown")
    assert code == 2 and "KEY=VALUE changes a job" in errors
