"""docs/recipes.md says what the recipes hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolofleet.specs.hyperparameters import Hyperparameters, recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def table() -> dict[str, list[str]]:
    """The cells of each setting's row, by its name."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_names_exactly_the_settings_in_their_order() -> None:
    assert list(table()) == list(Hyperparameters.model_fields)


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_meaning_values_and_source_are_right(name: str) -> None:
    meaning, *values, source = table()[name]
    assert meaning == " ".join(str(Hyperparameters.model_fields[name].description).split()).rstrip(".")
    held = [getattr(recipe(kind), name) for kind in ("p5", "p6", "tiny", "custom")]
    assert values == [format(value, "g") if isinstance(value, float | int) else str(value or "none") for value in held]
    assert source


# Origin: the published configuration files, commit a207844 (only what differs between them, and the shared peaks).
PUBLISHED = {
    "p5": {"lr0": 0.01, "lrf": 0.1, "translate": 0.2, "scale": 0.9, "mixup": 0.15, "paste_in": 0.15, "obj": 0.7},
    "p6": {"lr0": 0.01, "lrf": 0.2, "translate": 0.2, "scale": 0.9, "mixup": 0.15, "paste_in": 0.15, "obj": 0.7},
    "tiny": {"lr0": 0.01, "lrf": 0.01, "translate": 0.1, "scale": 0.5, "mixup": 0.05, "paste_in": 0.05, "obj": 1.0},
    "custom": {"lr0": 0.01, "lrf": 0.1, "translate": 0.2, "scale": 0.5, "mixup": 0.0, "paste_in": 0.0, "obj": 0.7},
}
SHARED = {
    "momentum": 0.937,
    "weight_decay": 5e-4,
    "warmup_epochs": 3.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1,
    "box": 0.05,
    "cls_pw": 1.0,
    "obj_pw": 1.0,
    "anchor_t": 4.0,
    "fl_gamma": 0.0,
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "degrees": 0.0,
    "shear": 0.0,
    "perspective": 0.0,
    "flipud": 0.0,
    "fliplr": 0.5,
    "mosaic": 1.0,
    "mosaic9_share": 0.2,
    "ema_decay": 0.9999,
    "ema_ramp_steps": 2000.0,
    "label_smoothing": 0.0,
    "schedule": "cosine",
}


@pytest.mark.parametrize("kind", ["p5", "p6", "tiny", "custom"])
def test_recipes_hold_the_published_values(kind: str) -> None:
    values = recipe(kind).document()  # type: ignore[arg-type]
    expected = SHARED | PUBLISHED[kind] | {"cls": 0.5 if kind == "tiny" else 0.3}
    assert {name: values[name] for name in expected} == expected
