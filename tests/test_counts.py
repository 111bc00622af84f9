"""A number that can be 1 is written with its noun by `core.text.plural`, so that nobody reads "1 images"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolofleet.core.text import plural

ROOT = Path(__file__).parents[1]
CODE = ("platform/**/*.py", "infra/**/*.py", "examples/*.py")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "examples/*", "jobs/*", "notebooks/*")

OTHER_NOUNS = frozenset(
    ("batches", "combinations", "hosts", "jobs", "manifests", "models", "pods", "seeds", "versions")
)
"""What is counted, beside the nouns that the code gives to `plural`."""
VERBS = frozenset(("names", "runs"))
"""Nouns that are nearly always verbs after a name: "{key} names no class"."""
NEVER_ONE = {
    ("cli/evaluation_tables.py", "{name} inputs"): "a name",
    ("data/decode.py", "{max_pixels} pixels"): "a limit",
    ("data/image_formats.py", "{levels} levels"): "a word",
    ("data/layout_coco.py", "{len(files)} JSON files"): "more than MOST_JSON_FILES",
    ("data/manifest.py", "{num_classes} classes"): "one class alone is right",
    ("evaluation/images.py", "{max_pixels} pixels"): "a limit",
    ("evaluation/json_file.py", "{len(names)} JSON files"): "one file is read",
    ("evaluation/prediction.py", "{self.pixels.shape[0]} pixels"): "a size, 640x480",
    ("losses/terms.py", "{len(factors)} levels"): "five are known",
    ("models/checkpoint_reader.py", "{self.most_bytes} bytes"): "a limit",
    ("models/graph.py", "{groups} groups"): "everything divides into one group",
    ("models/official_names.py", "{len(chosen)} models"): "one model is read",
    ("registry/lineage.py", "{len(matches)} manifests"): "one manifest is meant",
    ("search/engine.py", "{self._failures} trials"): "MOST_FAILURES or more",
    ("search/paper_report.py", "{table.seeds} seeds"): "one seed has a sentence of its own",
    ("search/space.py", "{count} combinations"): "more than MOST_CANDIDATES",
    ("specs/job.py", "{first} workers"): "everything can be shared by one worker",
    ("specs/search.py", "{count} candidates"): "more than MOST_CANDIDATES",
    ("storage/objects.py", "{size} bytes"): "more than a limit",
    ("training/loop/out_of_memory.py", "{self.num_parts} parts"): "two or more",
    ("training/setup/preparation.py", "{few} anchors"): "some at each level",
    ("training/setup/pretrained.py", "{', '.join(WEIGHT_FILES)} files"): "endings of files",
    ("training/supervision/nodes.py", "{len(asked)} hosts"): "two or more",
}
"""(file of the package, number and noun) -> why it is never "1"."""

ADJECTIVES = (
    r"(?:(?!(?:a|all|an|and|at|by|for|from|in|of|on|or|than|the|to|with|without) )[A-Za-z-]*[A-Za-rt-z-] ){0,2}"
)
"""Up to two words before the noun; a word that ends in "s" is a verb here, as in "{path} holds images"."""
VERB_OF_SEVERAL = re.compile(r" (?:are|were|have|do|hold|keep|write|belong|need|give|make|contain|differ|begin|end)\b")
"""After a number and its noun; `plural` is given both with their verbs: "file is", "files are"."""
DECIMALS = re.compile(r"\.[1-9]\d*[f%e]|[%e]$")
"""A form that shows decimals or a percentage: "1.0 hours" is right."""
CONSTANT = re.compile(r"\{[A-Z_0-9 +*]+\}")
"""A number that the code gives a name, as its limits; it would be written out if it were 1."""


def is_plural_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "plural"


def nouns_in(tree: ast.Module) -> Iterator[str]:
    """Yield the nouns that calls of `plural` count: "images" for plural(n, "image is", "images are")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_plural_call(node):
            words = [str(argument.value) for argument in node.args[1:] if isinstance(argument, ast.Constant)]
            several = plural(2, *words).split()[1:] if words else []
            yield from (word for word in several if word.endswith("s") and word not in words[0].split())


def plain_parts(node: ast.JoinedStr) -> set[object]:
    """Return the plain parts of an f-string."""
    return {part.value for part in node.values if isinstance(part, ast.Constant)}


def find_counts(tree: ast.Module, nouns: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, number and noun) for each number before a plural noun, and for each plural that is made by hand."""
    counted = rf" {ADJECTIVES}(?:{'|'.join(sorted(nouns))})\b(?!')"
    after_number, in_template = re.compile(counted), re.compile(rf"(?:\{{\w*\}}|%d){counted}")
    parts: set[int] = set()
    for node in ast.walk(tree):  # a string before its parts
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            for number, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant):
                    if is_plural_call(number.value):
                        verb = VERB_OF_SEVERAL.match(str(text.value))
                        yield from [(node.lineno, f"{{{ast.unparse(number.value)}}}{verb[0]}")] if verb else []
                        continue
                    form = "" if number.format_spec is None else ast.unparse(number.format_spec)[2:-1]
                    found = after_number.match(re.sub(r"^\[/\w*\]", "", str(text.value)))  # the end of a colour
                    if found is not None and not DECIMALS.search(form):
                        yield node.lineno, f"{{{ast.unparse(number.value)}}}{found[0]}"
            if " " in plain_parts(node) and re.search(r"\} \{[^{}]*\}e?s\b", ast.unparse(node)):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield from ((node.lineno, match[0]) for match in in_template.finditer(node.value))
        elif (
            isinstance(node, ast.IfExp)
            and isinstance(node.body, ast.Constant)
            and isinstance(node.orelse, ast.Constant)
        ):
            one, several = sorted((str(node.body.value), str(node.orelse.value)), key=len)
            if several in (f"{one}s", f"{one}es"):
                yield node.lineno, ast.unparse(node)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """The code by its path, without the folder of the package."""
    paths = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    named = ((path.relative_to(ROOT).as_posix().removeprefix("platform/yolofleet/"), path) for path in paths)
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in named}


@pytest.fixture(scope="module")
def nouns(trees: dict[str, ast.Module]) -> frozenset[str]:
    """What this project counts."""
    return frozenset(noun for tree in trees.values() for noun in nouns_in(tree)) - VERBS | OTHER_NOUNS


def test_a_number_and_its_noun_are_written_by_one_function(trees: dict[str, ast.Module], nouns: frozenset[str]) -> None:
    found = {(name, text): line for name, tree in trees.items() for line, text in find_counts(tree, nouns)}
    wrong = [
        f"{name}:{line}: '{text}'; say plural(number, noun), or why it is never 1"
        for (name, text), line in found.items()
        if (name, text) not in NEVER_ONE and not CONSTANT.match(text)
    ]
    assert not wrong, "\n".join(wrong)
    assert sorted(NEVER_ONE.keys() - found.keys()) == [], "an exception that nobody needs: leave it out"


def test_no_page_shows_one_of_several(nouns: frozenset[str]) -> None:
    """What a page shows of a command's output would be one of its own lines."""
    several = re.compile(rf"(?<![\w.,:/-])1 (?:{'|'.join(sorted(nouns))})\b")
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    wrong = [f"{path.name}: {match[0]}" for path in paths for match in several.finditer(path.read_text("utf-8"))]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("f'{count} images'", ["{count} images"]),
        ("f'{len(found):,} damaged JSON files, {a}'", ["{len(found)} damaged JSON files"]),
        ("f'[bold]{count}[/] images'", ["{count} images"]),
        ("f'{hours:g} hours'", ["{hours} hours"]),
        ("f'{a} of {count} ' f'images'", ["{count} images"]),
        ("'{count} images'.format(count=1)", ["{count} images"]),
        ("'%d images' % count", ["%d images"]),
        ("f'{count} {noun}s'", ["f'{count} {noun}s'"]),
        ("'' if count == 1 else 's'", ["'' if count == 1 else 's'"]),
        ("'box' if count == 1 else 'boxes'", ["'box' if count == 1 else 'boxes'"]),
        ("f\"{plural(count, 'image')} of {path}\"", []),
        ("f\"{plural(count, 'image')} are new\"", ["{plural(count, 'image')} are"]),
        ("f'{hours:.2f} hours'", []),
        ("f'{share:.0%} images'", []),
        ("f'{path} holds images'", []),
        ("f'{path} of images'", []),
    ],
)
def test_what_is_found(code: str, found: list[str]) -> None:
    nouns = frozenset(("images", "files", "hours"))
    assert [text for _, text in find_counts(ast.parse(code), nouns)] == found


def test_one_is_one_and_others_are_several() -> None:
    assert [plural(count, "image") for count in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    several = {"box": "boxes", "class": "classes", "batch": "batches", "epoch": "epochs", "process": "processes"}
    assert {noun: plural(2, noun) for noun in several} == {noun: f"2 {word}" for noun, word in several.items()}
    assert [plural(count, "file is", "files are") for count in (1, 2)] == ["1 file is", "2 files are"]
    hours = [plural(count, "hour", form=".3g") for count in (0.5, 0.9999, 1, 1.5)]
    assert hours == ["0.5 hours", "1 hour", "1 hour", "1.5 hours"]
    assert plural(1, "hour", form=".1f") == "1.0 hours"
