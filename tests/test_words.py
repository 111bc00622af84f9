"""The code and the pages say one word for one thing, and the word of the field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "platform/yolofleet"
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")

WORDS = {
    # An identifier is read as its words: `keptBesides` and `kept_besides` are "kept besides".
    r"attendances?": "heartbeat board",
    r"pulses?": "progress",
    r"intents?": "lock request",
    r"reigns?": "alias change",
    r"legs?": "trial segment",
    r"donors?": "source trial",
    r"afar": "checks by Jobs API",
    r"knock(s|ed|ing)?": "probe",
    r"arrangements?": "matching layout",
    r"hosting|host choice": "matching on CPU",
    r"device choice": "matching on GPU",
    r"crowds?": "candidates (COCO's crowd regions keep their name)",
    r"takings": "selection",
    r"setbacks?": "restart cost",
    r"survivals?": "goodput",
    r"abandoned": "placement-group cleanup",
    r"judg\w*": "evaluate, evaluation",
    r"pictures?": "image",
    r"told": "notified, asked, reported, distinguished: the one that is meant",
    r"fenced": "check_lock",
    r"kept besides": "protected_steps",
    r"lays? out": "the verb for what it does",
    r"no (finite )?number": "NaN, non-finite",
    r"(go|goes|went|going) on": "resume, continue",
    r"brought level": "synchronised",
    # "In place" and "in place of" are plain English, and so is Ray's "placement".
    r"(?<!in )(?<!in the )places?": "slot, position, resource: the one that is meant",
    # These are fine as English words, but name no class, function or module of ours.
    r"(?<=class )(member|holder|token|line|places|stall|session)(?=[(:])": "a name that says which one",
    r"(?<=def )(?!is )(\w+ )*(described|shown|listed|drawn|owned)( \w+)*(?=\()": "a verb",
    r"(?<=def )near": "checks by connection",
}

COCO = "COCO's name for a region of many objects (iscrowd)"
ALLOWED = {
    (f"{PACKAGE}/evaluation/*.py", "crowd"): COCO,
    (f"{PACKAGE}/evaluation/*.py", "crowds"): COCO,
    (f"{PACKAGE}/data/*.py", "crowd"): COCO,
    (f"{PACKAGE}/data/*.py", "crowds"): COCO,
    (f"{PACKAGE}/cli/data*.py", "crowd"): COCO,
    (f"{PACKAGE}/cli/data*.py", "crowds"): COCO,
    (f"{PACKAGE}/cli/evaluation_tables.py", "crowd"): COCO,
    (f"{PACKAGE}/cli/evaluation_tables.py", "crowds"): COCO,
    (f"{PACKAGE}/training/setup/preflight.py", "crowd"): COCO,
    (f"{PACKAGE}/tracking/run_documents.py", "crowds"): COCO,
    ("docs/data.md", "crowds"): COCO,
    ("docs/evaluate.md", "crowd"): COCO,
    (f"{PACKAGE}/training/evaluation/checkpoint_evaluations.py", "judge"): "stored key of state.json (`to_judge`)",
    (f"{PACKAGE}/search/trial*s.py", "donor"): "stored key of trials.jsonl",
    (f"{PACKAGE}/registry/promotion_lock.py", "intent"): "stored in the names of registry tags",
    (f"{PACKAGE}/registry/proof.py", "judgement"): "stored key of proof.json",
    (f"{PACKAGE}/registry/release.py", "judgement"): "stored file of a release",
    (f"{PACKAGE}/registry/release.py", "pictures"): "stored key of older releases",
    (f"{PACKAGE}/cluster/prediction_parts.py", "pictures"): "stored key of older plans",
    (f"{PACKAGE}/cli/report.py", "survival"): "key of `report --json`",
    (f"{PACKAGE}/storage/lock_record.py", "place"): "stored key of locks",
    (f"{PACKAGE}/cluster/doctor/finding.py", "place"): "stored key of doctor reports",
    (f"{PACKAGE}/training/supervision/launch.py", "place"): "the verb: Ray places actors",
    ("docs/architecture.md", "places"): "the verb: Tune places trial segments",
    ("docs/cluster-doctor.md", "place"): "the verb: a cluster places workers",
    ("docs/cluster-training.md", "places"): "the verb: Ray places workers",
}
"""(path or pattern, word) -> why it stays."""


def find_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word, the word to use) for each word that is not the field's."""
    split = re.sub(r" *(?:(?<=[a-z0-9])(?=[A-Z])|_)+ *", " ", text).lower()
    # A phrase may be broken by the end of a line; the sign of a comment is no word.
    flat = re.sub(r"(?m)^([ \t]*)#", r"\1 ", split)
    for pattern, better in WORDS.items():
        spaced = pattern.replace(" ", r"\s+") if not pattern.startswith("(?<") else pattern
        for match in re.finditer(rf"\b(?:{spaced})\b", flat):
            yield flat.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), better


def files() -> Iterator[Path]:
    yield from sorted((ROOT / PACKAGE).rglob("*.py"))
    for pattern in PAGES:
        yield from sorted(ROOT.glob(pattern))


def test_each_thing_has_the_word_of_the_field() -> None:
    used, wrong = set(), []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        for line, word, better in find_words(path.read_text(encoding="utf-8")):
            reasons = {entry for entry in ALLOWED if fnmatch(name, entry[0]) and word == entry[1]}
            used |= reasons
            if not reasons:
                wrong.append(f"{name}:{line}: '{word}'; say: {better}")
    assert not wrong, "\n".join(wrong)
    assert sorted(set(ALLOWED) - used) == [], "allowed, but nobody says it: leave it out"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training\n    # goes\n    # on", (2, "goes on")),
        ("class TrialLeg:", (1, "leg")),
        ("kept_besides = ()", (1, "kept besides")),
        ("\ndef _shown(value):", (2, "shown")),
        ("class Member:", (1, "member")),
        ("a free place", (1, "place")),
    ],
)
def test_a_word_is_found_in_names_comments_and_over_the_end_of_a_line(text: str, expected: tuple[int, str]) -> None:
    assert [found[:2] for found in find_words(text)] == [expected]


@pytest.mark.parametrize(
    "text", ["it is added in place", "in place of the old", "placement", "iscrowd", "foreign", "shown"]
)
def test_plain_words_pass(text: str) -> None:
    assert not list(find_words(text))
