"""Labels and tars that somebody made to hurt: counted or refused in one line, never a crash, a hang or much memory."""

from __future__ import annotations

import io
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.check import check_dataset
from yolofleet.data.class_names import parse_class_names
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import LONGEST_EXAMPLE, ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.voc import MOST_ELEMENTS, named_image
from yolofleet.data.yolo import MOST_LABEL_LINES, MOST_UNNAMED_CLASSES, parse_label_lines, usable_lines
from yolofleet.data.yolo_lines import LabelLine


def image_bytes() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 20, 200)).save(data, "JPEG")
    return data.getvalue()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], list[str]]:
    """Run ``data ...``; return its exit code, what it counted as JSON, and the lines of its error."""
    code = main(["data", *map(str, arguments), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out)["problems"] if told.out else {}, told.err.splitlines()


# --- the files of the corpus


def test_a_class_of_a_billion_in_the_corpus_takes_no_memory(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = test_data / "hostile2" / "yolo" / "y01_class_1e9"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, _, lines = run(capsys, "shard", folder / "labels", folder / "images", tmp_path / "out")
    assert code == 2 and len(lines) == 1
    assert "no class is named, and category_unknown: 1 (such as a.txt: line 1: '1000000000 0.5" in lines[0]
    assert lines[0].endswith("name the classes with --classes")
    (tmp_path / "names.txt").write_text("cat\n")
    code, counted, _ = run(capsys, "check", folder / "labels", folder / "images", "--classes", tmp_path / "names.txt")
    assert code == 0 and counted["category_unknown"]["count"] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_class_names_of_the_corpus_that_multiply_are_refused(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = test_data / "hostile2" / "yolo" / "y06d_names_laughs"
    start = time.process_time()
    code, _, lines = run(capsys, "check", folder / "labels", folder / "images", "--classes", folder / "names.yaml")
    assert code == 2 and len(lines) == 1 and "names.yaml:5: " in lines[0] and len(lines[0]) < 400
    assert time.process_time() - start < 1


# --- YOLO


def parse(text: str, problems: ProblemLog) -> list[LabelLine]:
    return usable_lines(parse_label_lines(text, "a.txt", problems), None, None, problems)


@pytest.mark.parametrize("number", ["1000000000", "10000", "9223372036854775807", "1e308", "1" + "0" * 300])
def test_a_class_that_no_name_covers_is_counted(number: str) -> None:
    problems = ProblemLog()
    lines = parse(f"{number} 0.5 0.5 0.1 0.1\n9999 0.5 0.5 0.1 0.1", problems)
    assert [line.category for line in lines] == [MOST_UNNAMED_CLASSES - 1]
    assert problems.counts == {"category_unknown": 1}
    assert problems.examples["category_unknown"][0].endswith("(classes are 0 to 9999; name the classes with --classes)")


@pytest.mark.parametrize(
    "line",
    ["0 " + "9" * 5000 + " 0 0 1", "0 nan 0 1 1", "nan 0 0 1 1", "inf 0 0 1 1", "0.5 0 0 1 1", "\0", "0 0.1", "é"],
)
def test_a_line_that_is_no_label_is_counted(line: str) -> None:
    problems = ProblemLog()
    assert parse(line, problems) == []
    assert problems.counts == {"label_line_malformed": 1}


def test_many_lines_are_compared_in_linear_time_even_where_their_numbers_have_one_hash() -> None:
    """Python gives 2**-61 and 2**-122 the hash of 2.0**61: pairs of those would all meet in one slot of a set."""
    lines = "\n".join(f"{number % 9999} 0.{number:06d} 0.5 0.1 0.1" for number in range(40_000))
    tiny = [repr(2.0 ** -(61 * power)) for power in range(1, 17)]
    alike = "\n".join(f"0 0.5 0.5 {a} {b} 0.1 {c} 0.1 {d}" for a in tiny for b in tiny for c in tiny for d in tiny[:8])
    for text, count in ((lines, 40_000), (alike, 32_768)):
        start = time.process_time()
        problems = ProblemLog()
        assert len(parse(text, problems)) == count
        assert time.process_time() - start < 5 and not problems.counts
    problems = ProblemLog()
    assert len(parse("0 0.5 0.5 0.1 0.1\n" * 3, problems)) == 3
    assert problems.counts == {"annotation_duplicate_box": 2}


def test_label_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100 << 30)
    problems = ProblemLog()
    with pytest.raises(UserError, match=r"label_file_too_large: 1 \(such as a.txt: 107,374,182,400 bytes\)"):
        read_source(str(tmp_path), str(tmp_path), problems)


# --- class names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: {0: a, b: c}", r"names: the numbers must be 0, 1, 2, ..., not \[0, 'b'\]"),
        ("names: {a: 0, 1: x, ~: y}", "names: the numbers must be"),
        ("names: {1000000000: a}", "names: the numbers must be"),
        ("names: {0: a, 1: [b, c]}", r"class 1 is \['b', 'c'\]; write its name as text"),
        ("names: [a, ~, c]", "class 1 is None"),
        ('names: [a, "", c]', "class 1 is ''"),
        ('names: ["\\ud800"]', "invalid Unicode character"),
        ("names: [2001-99-99]", r"names\.yaml"),
        ("names: [!!binary aGk=]", r"names\.yaml"),
        ("names: !!set {a, b}", r"names\.yaml"),
        ("names: &a [*a]", r"names\.yaml"),
        ("names: " + "[" * 5000, r"names\.yaml"),
        ("names: a", "is no list of class names"),
        (b"names: [\xff]", "not UTF-8 at byte 8; save the file as UTF-8"),
    ],
)
def test_class_names_that_are_none_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_class_names(text.encode() if isinstance(text, str) else text, "names.yaml")
    assert str(caught.value).startswith("names.yaml:") and len(str(caught.value)) < 400


def test_a_file_of_class_names_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "names.txt").open("wb") as file:
        file.truncate(100 << 30)
    code, _, lines = run(capsys, "check", tmp_path, tmp_path, "--classes", tmp_path / "names.txt")
    assert code == 2 and "too many for class names" in lines[0]
    code, _, lines = run(capsys, "check", tmp_path, tmp_path, "--classes", "/dev/zero")
    assert code == 2 and "no such file" in lines[0]


# --- COCO


def coco(**changes: Any) -> bytes:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 20], "area": 400, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [box | changes],
        "categories": [{"id": 1, "name": "thing"}],
    }
    return json.dumps(document).encode()


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize("depth", [5, 100, 300, 900])
@pytest.mark.parametrize("key", ["id", "bbox", "category_id", "segmentation", "area", "image_id", "iscrowd"])
def test_what_nests_deeply_is_counted_or_refused(key: str, depth: int) -> None:
    data = coco().replace(
        b'"annotations": [{', b'"annotations": [{"%s": ' % key.encode() + b"[" * depth + b"]" * depth + b",", 1
    )
    data = re.sub(rb', "%s": (\[[^]]*\]|\d+)' % key.encode(), b"", data)
    problems = ProblemLog()
    try:
        parse_coco(data, "x.json", problems)
    except UserError as error:
        assert "nested too deeply" in str(error)
    else:
        assert problems.counts or key == "id"


def test_boxes_with_one_hash_are_compared_in_linear_time() -> None:
    sides = [2.0 ** (61 * power) for power in range(-8, 2)]
    boxes = [[a, b, 2.0**-5, c] for a in sides for b in sides for c in sides if c > 0.01]
    boxes = [box for box in boxes for _ in range(8)]
    annotations = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    document = json.loads(coco()) | {"annotations": annotations}
    start = time.process_time()
    problems = ProblemLog()
    parse_coco(json.dumps(document).encode(), "x.json", problems)
    assert time.process_time() - start < 2 and problems.counts["annotation_duplicate_box"] == len(boxes) * 7 // 8


def test_a_coco_file_of_any_size_is_looked_at_before_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(100 << 30)
    code, _, lines = run(capsys, "check", tmp_path / "x.json", tmp_path)
    assert code == 2 and "x.json: has 107,374,182,400 bytes, too many for annotations" in lines[0] and len(lines) == 1


def test_an_example_is_one_short_line_whatever_the_name_is() -> None:
    problems = ProblemLog()
    problems.add("image_malformed", "a\nb\x1b[31m\u202e\ud800" + "x" * 1000)
    (example,) = problems.examples["image_malformed"]
    assert example.startswith("a\\nb\\x1b[31m\\u202e\\ud800xxx") and len(example) < 2 * LONGEST_EXAMPLE
    assert example.isprintable()


# --- VOC

OBJECT = "<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"
DOCUMENT = (
    "<annotation><filename>a.jpg</filename><size><width>{width}</width><height>48</height></size>{objects}</annotation>"
)
DOCTYPE = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ((DOCTYPE + DOCUMENT.format(width="&c;", objects=OBJECT)).encode(), "annotation_malformed"),
        ((DOCTYPE + DOCUMENT.format(width="&c;", objects=OBJECT)).encode("utf-16"), "annotation_malformed"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "annotation_malformed"),
        (b'<?xml version="1.0" encoding="hex"?><a/>', "annotation_malformed"),
        (b'<?xml version="1.0" encoding="shift_jis"?><a/>', "annotation_malformed"),
        (b"<a>\xff</a>", "annotation_malformed"),
        (b"<a>" * 100_000, "annotation_malformed"),
        (b"<a " + b" ".join(b'x%d="1"' % number for number in range(50_000)) + b" x1='2'/>", "annotation_malformed"),
        (b" " * (5 << 20), "annotation_malformed"),
        (DOCUMENT.format(width="²", objects=OBJECT).encode(), "image_size_missing"),
        (DOCUMENT.format(width="9" * 5000, objects=OBJECT).encode(), "image_size_missing"),
        (DOCUMENT.format(width="-5", objects=OBJECT).encode(), "image_size_missing"),
        (DOCUMENT.format(width="64", objects=OBJECT.replace(">20<", ">1e308<")).encode(), "box_not_finite"),
        (DOCUMENT.format(width="64", objects=OBJECT.replace(">20<", ">nan<")).encode(), "box_not_finite"),
        (DOCUMENT.format(width="64", objects=OBJECT.replace(">20<", f">{'9' * 5000}<")).encode(), "box_not_finite"),
    ],
)
def test_hostile_voc_files_are_counted(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "z.xml").write_bytes(data)
    (tmp_path / "a.xml").write_text(DOCUMENT.format(width=64, objects=OBJECT))
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    start = time.process_time()
    problems = ProblemLog()
    source, store = read_source(str(tmp_path), str(tmp_path), problems)
    assert check_dataset(source, store, problems).num_boxes >= 1
    assert kind in problems.counts and time.process_time() - start < 2


def test_objects_that_nest_deeply_are_read_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "a.xml").write_text(DOCUMENT.format(width=64, objects=OBJECT))
    (tmp_path / "b.xml").write_text(DOCUMENT.format(width=64, objects="<part>" * 200_000 + "</part>" * 200_000))
    problems = ProblemLog()
    source, _ = read_source(str(tmp_path), str(tmp_path), problems)
    assert len(source.classes) == 1


def test_a_label_file_of_very_many_lines_is_counted_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    for stem, num_lines in (("a", MOST_LABEL_LINES + 1), ("b", 1)):
        (tmp_path / "images" / f"{stem}.jpg").write_bytes(image_bytes())
        (tmp_path / "labels" / f"{stem}.txt").write_text("0 .5 .5 .5 .5\n" * num_lines)
    problems = ProblemLog()
    source, _ = read_source(str(tmp_path / "labels"), str(tmp_path / "images"), problems)
    assert problems.examples["label_file_too_large"] == [f"a.txt: {MOST_LABEL_LINES + 1:,} lines"]
    assert [len(record.boxes) for record in source.records if record.file_name == "b.jpg"] == [1]


@pytest.mark.parametrize(
    "inside", [b"<a>" * 70 + b"</a>" * 70, b"<a/>" * (MOST_ELEMENTS + 1)], ids=["deep", "many elements"]
)
def test_an_xml_file_of_too_many_elements_is_none_of_voc(tmp_path: Path, inside: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(b"<annotation><filename>a.jpg</filename>" + inside + b"</annotation>")
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    problems = ProblemLog()
    with pytest.raises(UserError):
        read_source(str(tmp_path), None, problems)
    assert "nested deeper than 64" in problems.examples["annotation_malformed"][0]
    assert named_image((tmp_path / "a.xml").read_bytes()) == ""
