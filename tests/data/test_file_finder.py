"""Names of files against their keys, where many files have one base name."""

from __future__ import annotations

import random

import pytest

from yolofleet.data import file_finder
from yolofleet.data.file_finder import find_files


def num_agreeing(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((number for number, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def single_best(agreeing: dict[str, int]) -> str | None:
    best = [key for key, number in agreeing.items() if number == max(agreeing.values())]
    return best[0] if len(best) == 1 else None


def test_the_only_file_that_agrees_in_most_folders_is_found_among_those_of_one_name() -> None:
    generator = random.Random(0)
    for _ in range(300):
        keys = {"/".join([*generator.choices("ab", k=generator.randint(0, 3)), "x.jpg"]) for _ in range(5)}
        folders = generator.choices("abc", k=generator.randint(0, 3))
        parents = {key: key.split("/")[:-1] for key in keys}
        agreeing = {key: num_agreeing(parent, folders) for key, parent in parents.items()}
        assert find_files(["/".join(["C:", *folders, "X.JPG"])], keys) == [single_best(agreeing)]
        whole = {key: number for key, number in agreeing.items() if number == min(len(parents[key]), len(folders))}
        assert find_files(["/".join([*folders, "X.JPG"])], keys) == [single_best(whole)]


def test_names_in_many_folders_are_compared_in_a_number_of_steps_that_grows_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_steps = 0
    yields = file_finder.KeysByEnd.path

    def counted(self: file_finder.KeysByEnd, parts: list[str]) -> list[file_finder.KeysByEnd]:
        nonlocal num_steps
        steps = [*yields(self, parts)]
        num_steps += len(steps)
        return steps

    monkeypatch.setattr(file_finder.KeysByEnd, "path", counted)
    keys = [f"s{number}/image.jpg" for number in range(2000)]
    for form in ("{}", "/data/{}"):
        assert find_files([form.format(key).replace("/", "\\") for key in keys], keys) == keys
    assert num_steps <= 2 * 2 * 4 * len(keys)


def test_keys_that_no_name_asks_for_get_no_group_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    make = file_finder.KeysByEnd.__init__
    monkeypatch.setattr(file_finder.KeysByEnd, "__init__", lambda self, *args: groups.append(args) or make(self, *args))
    by_end = file_finder.KeysByEnd([(["s", f"{number}.jpg"], f"s/{number}.jpg") for number in range(500)])
    assert [group.depth for group in by_end.path(["s", "7.jpg"])] == [0, 1, 2] and len(groups) == 3
