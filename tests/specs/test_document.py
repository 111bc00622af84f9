from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.specs.base import apply_overrides, refuse_secrets
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import DocumentError, parse_yaml, read_yaml, write_yaml


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert parse_yaml("{a: 1e-3, b: 1E+2, c: 1.5e3, d: 10}", source="x") == {
        "a": 1e-3,
        "b": 100.0,
        "c": 1500.0,
        "d": 10,
    }


def test_words_that_look_a_little_like_numbers_stay_words() -> None:
    assert parse_yaml("{a: e5, b: 1e, c: 12e3x}", source="x") == {"a": "e5", "b": "1e", "c": "12e3x"}


def laughs(prefix: str) -> str:
    """Eight levels of ten aliases each: 10^8 values."""
    first = ["l0: &l0 {a: 1}"]
    return "\n".join(first + [f"l{n}: &l{n} {prefix}[{','.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "file.yaml:4: b: key 'c' is given twice"),
        ("{1: a, '1': b}", "file.yaml:1: key '1' is given twice"),
        ("a: [1, 2", "file.yaml:2: column 1: not readable as YAML"),
        ("a: !!python/object/apply:os.system ['true']", "file.yaml:1: a: the tag"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("{a: " * 5000, "nested deeper than 100 levels"),
        (laughs(""), "file.yaml:6: l5.2: more than 100,000 values"),
        (laughs("\n  <<: "), "more than 100,000 values"),
        (f"a: &a {'x' * 4_000_000}\nb: [{'*a,' * 300_000}]", "more than 100,000 values"),
        (f"[{'a,' * 200_000}]", "more than 100,000 values"),
        ("freeze: &a [*a]", "file.yaml:1: freeze.0: the alias *a refers to a value that contains it"),
        ("a: &a {b: *a}", "a.b: the alias *a refers to"),
        ("a: *b", "the alias *b has no anchor &b before it"),
        ("<<: 3", "'<<' merges mappings"),
        ("seed: 0x" + "F" * 5000, "file.yaml:1: seed: 0xFFFF"),
        ("seed: 18446744073709551616", "is beyond 64 bits"),
        ("seed: -9223372036854775809", "is beyond 64 bits"),
        ("seed: " + "9" * 1_000_000, "(1,000,000 characters) is beyond 64 bits"),
        ("a:\n  b: [1, 1:30:00]", "file.yaml:2: a.b.1: 1:30:00 is a number to the base of 60"),
        ("a: 010", "a: 010 is an octal or binary number to some programs"),
        ("a: 0o10", "octal"),
        ("a: 08", "octal"),
        ("a: 0b11", "octal or binary"),
        ("a: 2024-01-01", "a: 2024-01-01 is a date to some programs"),
        ("a: .inf", "a: .inf is a non-finite number"),
        ("a: 1e999", "a: 1e999 is a non-finite number"),
        ("a: !!binary aGk=", "a: the tag tag:yaml.org,2002:binary is not read"),
        ("a: !!set {b, c}", "a: the tag tag:yaml.org,2002:set is not read"),
        ('storage: "a\\0b"', r"storage: 'a\x00b' holds '\x00'"),
        ("a: \0", "file.yaml:1: not readable as YAML"),
        ("a: 1\nb: \x1b[31m", "file.yaml:2: not readable as YAML"),
        ('a: "\\ud800"', "file.yaml:1: "),
        ("a: \udc80", "file.yaml: not UTF-8 text"),
        ("{[1]: 2}", "a key must be plain text"),
        ("a: 1\n---\nb: 2", "file.yaml:2: a second document"),
    ],
)
def test_hostile_yaml_is_refused_at_once_in_one_line(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(DocumentError, match=r"file\.yaml") as caught:
        parse_yaml(text, source="file.yaml")
    assert time.process_time() - began < 1
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["s02_billion_laughs", "s03_circular_list", "s05_hex_5000", "s10h_nul_storage"])
def test_hostile_jobs_end_with_2_and_one_line(test_data: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = test_data / "hostile2" / "specs" / f"{name}.yaml"
    assert main(["data", "show", str(path), "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}:")


NUMBERLIKE = r"[-+]?[0-9][0-9._:exob-]{0,6}|yes|no|null|~|<<|=|true"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.from_regex(NUMBERLIKE, fullmatch=True),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab1~-", max_size=3), inner, max_size=4),
    max_leaves=12,
)


SECRET = "S3cr3tP4ssw0rd" * 3
URL = f"https://mlflow:{SECRET}@mlflow.internal"


@pytest.mark.parametrize(
    "text",
    [f"{{'{URL}': 1, '{URL}': 2}}", f"'{URL}': [a, 010]", f'a: "{URL}\\0"', f"a: !<{URL}> b", f"'{URL}': {{a: 1"],
)
def test_no_message_holds_a_part_of_a_password(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text, source="file.yaml")
    assert SECRET[:3] not in str(caught.value)


@given(JSON)
def test_what_is_written_reads_back_as_the_same(document: Any) -> None:
    assert parse_yaml(write_yaml(document), source="x") == document


def test_aliases_and_merges_stand_for_what_they_name() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {y: 4, <<: [*a, {x: 5, z: 6}]}\nd: [*a, *a]"
    first = {"x": 1, "y": 2}
    expected = {"a": first, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 4, "z": 6}, "d": [first, first]}
    assert parse_yaml(text, source="x") == expected


def test_a_merge_takes_each_key_once_and_the_strongest_value() -> None:
    own = ", ".join(f"k{number}: 0" for number in range(25_000))
    found = parse_yaml(f"{{<<: [{'{a: 0}, ' * 16_000}], {own}}}", source="x")
    assert len(found) == 25_001 and next(iter(found)) == "a"
    found = parse_yaml("{y: 4, <<: [{x: 1, y: 2}, {z: 6, x: 5}]}", source="x")
    assert list(found.items()) == [("z", 6), ("x", 1), ("y", 4)]


def test_a_huge_key_is_no_part_of_every_path() -> None:
    refuse_secrets({"k" * 4_000_000: {f"k{number}": 0 for number in range(25_000)}}, "file.yaml")


def test_off_yes_no_and_on_are_text_and_true_is_not() -> None:
    text = "{a: off, b: Yes, c: no, d: ON, e: true, f: False, g: ~, h: !!str 1, i: '2', j: 1_000, k: 0x1F, l: -.5}"
    expected = ["off", "Yes", "no", "ON", True, False, None, "1", "2", 1000, 31, -0.5]
    assert list(parse_yaml(text, source="x").values()) == expected


def test_a_name_may_be_off_and_a_switch_may_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("{name: a, model: {name: yolov7-tiny}, data: {train: t, val: v}}")
    assert JobSpec.load(job, ["name=off"]).name == "off"
    with pytest.raises(UserError, match=r'record_samples: .*not "yes"; write true or false'):
        JobSpec.load(job, ["record_samples=yes"])
    with pytest.raises(UserError, match=r"name: .*not 12345; quotes make it text"):
        JobSpec.load(job, ["name=12345"])
    assert JobSpec.load(job, ['name="12345"']).name == "12345"
    for field in ("storage", "data.train", "model.spec"):
        with pytest.raises(UserError, match=rf"job\.yaml: {field}: ~nosuchuser/x: this machine has no home folder"):
            JobSpec.load(job, [f"{field}=~nosuchuser/x"])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "large", "sparse"])
def test_only_small_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "base.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.write_bytes(b"#" * (8 * 10**6 + 1) if kind == "large" else b"")
        os.truncate(path, 10**11 if kind == "sparse" else 8 * 10**6 + 1)
    began = time.process_time()
    with pytest.raises(UserError, match=r"base\.yaml") as caught:
        read_yaml(path)
    assert time.process_time() - began < 1
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_names_its_neighbour(tmp_path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(DocumentError, match=r"did you mean .*quickstart\.yaml"):
        read_yaml(tmp_path / "quickstrat.yaml")


def test_overrides_set_nested_values_and_leave_the_original_alone() -> None:
    document = {"data": {"image_size": 640}, "epochs": 3}
    changed = apply_overrides(document, ["data.image_size=320", "cluster.workers=[1, 2]", "name=x=y"])
    assert changed == {"data": {"image_size": 320}, "epochs": 3, "cluster": {"workers": [1, 2]}, "name": "x=y"}
    assert document == {"data": {"image_size": 640}, "epochs": 3}


@pytest.mark.parametrize(
    "override", ["data.image_size", "=3", "a..b=1", "epochs.more=1", "a=[", "a=010", "a=\udc80", "a." * 200 + "b=1"]
)
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(DocumentError, match="override"):
        apply_overrides({"epochs": 3}, [override])


@pytest.mark.parametrize(
    "override", [f"tracking.uri:{URL}", f"a..b={URL}", f"tracking={URL}]", "tracking.uri.x=1", "tracking.all.x=1"]
)
def test_no_refused_override_shows_a_part_of_a_password(override: str) -> None:
    with pytest.raises(DocumentError, match="override") as caught:
        apply_overrides({"tracking": {"uri": URL, "all": [URL]}}, [override, "tracking=["])
    assert SECRET[:3] not in str(caught.value)
