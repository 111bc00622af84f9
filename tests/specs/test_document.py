from __future__ import annotations

import pytest

from yolofleet.specs.base import DocumentError, apply_overrides, parse_yaml, read_yaml


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert parse_yaml("{a: 1e-3, b: 1E+2, c: 1.5e3, d: 10}", source="x") == {
        "a": 1e-3,
        "b": 100.0,
        "c": 1500.0,
        "d": 10,
    }


def test_words_that_look_a_little_like_numbers_stay_words() -> None:
    assert parse_yaml("{a: e5, b: 1e, c: 12e3x}", source="x") == {"a": "e5", "b": "1e", "c": "12e3x"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("a: [1, 2", "line"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, part: str) -> None:
    with pytest.raises(DocumentError, match=r"file\.yaml") as caught:
        parse_yaml(text, source="file.yaml")
    assert part in str(caught.value)


def test_missing_file_names_its_neighbour(tmp_path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(DocumentError, match=r"did you mean .*quickstart\.yaml"):
        read_yaml(tmp_path / "quickstrat.yaml")


def test_overrides_set_nested_values_and_leave_the_original_alone() -> None:
    document = {"data": {"image_size": 640}, "epochs": 3}
    changed = apply_overrides(document, ["data.image_size=320", "cluster.workers=[1, 2]", "name=x=y"])
    assert changed == {"data": {"image_size": 320}, "epochs": 3, "cluster": {"workers": [1, 2]}, "name": "x=y"}
    assert document == {"data": {"image_size": 640}, "epochs": 3}


@pytest.mark.parametrize("override", ["data.image_size", "=3", "a..b=1", "epochs.more=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(DocumentError, match="override"):
        apply_overrides({"epochs": 3}, [override])
