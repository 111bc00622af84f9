"""Every space of the repository loads and is profiled, has the paper's numbers and costs, and its rows differ."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.published_tables import published_tables
from yolofleet.models import build_model
from yolofleet.models.profile import cost
from yolofleet.models.wiring import wire
from yolofleet.search.feasibility import Screen, check_feasible, profile_job
from yolofleet.search.session import check_metrics
from yolofleet.search.space import Space, even_point
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec, load_search
from yolofleet.training.setup.builders import build_loss, trained_table

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
TABLES = [path for path in SPACES if path.name.startswith("table")]
THIN = ["job.model.transition_width=0.125", "job.model.hidden_width=0.125"]
SIDE = 128

PARAMETERS = {
    "table3-compound-scaling": {
        "base (v7-X light)": (47_073_178, 47_045_245),
        "width only (1.25 w)": (73_391_490, 73_356_765),
        "depth only (2.0 d)": (69_321_114, 69_285_757),
        "compound (v7-X)": (71_347_394, 71_311_741),
    },
    "table4-planned-repconv": {
        "base (3-S ELAN)": (58_197_146, 58_165_501),
        "inside each stack": (59_902_874, 58_165_501),
        "at the end of each stack": (59_891_738, 58_165_501),
        "everywhere in each stack": (61_597_466, 58_165_501),
        "at the end of each stack, identity kept": (59_902_874, 58_165_501),
        "everywhere in each stack, identity kept": (61_608_602, 58_165_501),
    },
    "table5-residual-repconv": {
        "base (YOLOR-W6)": (79_873_400, 79_824_444),
        "RepCSP (YOLOR-W6)": (83_846_776, 79_824_444),
        "RCSP (YOLOR-W6)": (79_873_400, 79_824_444),
        "RepRCSP (YOLOR-W6)": (83_846_776, 79_824_444),
        "base (YOLOR-CSP)": (52_923_994, 52_889_053),
        "RepRCSP (YOLOR-CSP)": (55_487_642, 52_889_053),
    },
    "table6-auxiliary-head": {
        "base (v7-E6)": (97_250_872, 97_202_940),
        "independent": (111_898_292, 97_202_940),
        "lead guided": (111_898_292, 97_202_940),
        "coarse-to-fine lead guided": (111_898_292, 97_202_940),
    },
    "table7-constraint": {
        "base (v7-E6)": (97_250_872, 97_202_940),
        "aux without constraint": (111_898_292, 97_202_940),
        "aux with constraint": (111_898_292, 97_202_940),
    },
    "table8-partial-auxiliary": {
        "base (v7-E6E)": (151_761_464, 151_687_420),
        "aux": (166_408_884, 151_687_420),
        "partial aux": (166_408_884, 151_687_420),
    },
}
"""Parameters of every variant at 80 classes: in training, and deployed."""


def candidates(space: Space) -> list[dict[str, Any]]:
    if space.spec.algorithm.name == "grid":
        return space.parameters.grid()
    return [space.parameters.at(even_point(0, number, len(space.parameters))) for number in range(20)]


def thin(path: Path, folder: Path) -> SearchSpec:
    """A table with an eighth of the widths; Table 3 varies the widths itself, so its base is made thin."""
    overrides = [f"job.data.image_size={SIDE}"]
    if path.stem == "table3-compound-scaling":
        table = folder / "thin.yaml"
        table.write_text("name: thin\nbase: yolov7-x-light\ntransition_width: 0.125\nhidden_width: 0.125\n")
        return load_search(path, [*overrides, "job.model.name=null", f"job.model.spec={table}"])
    widths = THIN[:1] if path.stem.startswith("table5") else THIN  # cross-stage blocks have no inner width
    return load_search(path, [*overrides, *widths])


def test_the_spaces_that_are_promised_are_there() -> None:
    assert {path.stem for path in SPACES} == {
        "quickstart",
        "table3-compound-scaling",
        "table4-planned-repconv",
        "table5-residual-repconv",
        "table6-auxiliary-head",
        "table7-constraint",
        "table8-partial-auxiliary",
        "compound-scaling",
        "hyperparameters-p5",
        "learning-rate",
    }


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_space_is_loaded_expanded_and_profiled(path: Path) -> None:
    space = Space(load_search(path), source=path.name)
    check_metrics(space.spec, source=path.name)
    screen = Screen(space)
    screened = [screen(values) for values in candidates(space)]
    assert all(entry.problem is None for entry in screened)
    assert any(entry.feasible for entry in screened)
    if path in TABLES:
        assert all(entry.feasible for entry in screened)
        assert len(screened) == space.spec.budget.trials
    points = [even_point(0, number, len(space.parameters)) for number in range(8)]
    check_feasible(space.parameters, screen, points, source=path.name)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_space_prints_what_the_paper_prints(path: Path) -> None:
    """Every number of the table, in its order, and no other; a label may say which base is meant."""
    paper = load_search(path).paper
    assert paper is not None
    printed = published_tables()[path.stem.partition("-")[0]]
    assert paper.table == path.stem.partition("-")[0].replace("table", "Table ")
    for row, expected in zip(paper.rows, printed, strict=True):
        numbers = {name: value for name, value in row.document().items() if name != "label" and value is not None}
        assert numbers == {name: value for name, value in expected.items() if name not in ("model", "size")}
        assert row.label.startswith(expected["model"])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_variant_has_its_parameters(path: Path) -> None:
    space = Space(load_search(path), source=path.name)
    counted = {}
    for values in space.parameters.grid():
        figures = profile_job(space.job(values), num_classes=80)
        counted[next(iter(values.values()))] = (figures["parameters_training"], figures["parameters"])
    assert counted == PARAMETERS[path.stem]


def test_table_3_has_the_papers_parameters_and_flops() -> None:
    """The paper counts some rows folded and some with batch norm as operations of its own (docs/models.md)."""
    space = Space(load_search(TABLES[0]), source="table3")
    for row in published_tables()["table3"]:
        job = space.job({"variant": row["model"]})
        graph = wire(trained_table(job))
        size = (row["size"], row["size"])
        folded = cost(graph, num_classes=80, size=size, folded=True, auxiliary=False)
        unfolded = cost(graph, num_classes=80, size=size, auxiliary=False)
        assert row["parameters"] == pytest.approx(folded.parameters / 1e6, abs=0.051)
        assert row["gflops"] in (round(folded.gflops_with_bias, 1), round(unfolded.gflops_with_norm, 1))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_is_trained_at_the_size_that_the_paper_prints(path: Path) -> None:
    space = Space(load_search(path), source=path.name)
    sizes = {row["size"] for row in published_tables()[path.stem.partition("-")[0]] if "size" in row}
    if sizes:
        assert {space.job(values).data.image_size for values in candidates(space)} == sizes


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_two_candidates_of_a_table_differ(path: Path, tmp_path: Path) -> None:
    space = Space(thin(path, tmp_path), source=path.name)
    known: dict[str, tuple[int, float]] = {}
    for values in candidates(space):
        job = space.job(values, {"data.image_size": SIDE})
        known[str(values)] = fixed_loss(job)
    for (first, a), (second, b) in combinations(known.items(), 2):
        assert a != b, f"{first} and {second} compute the same"


def fixed_loss(job: JobSpec) -> tuple[int, float]:
    """Parameters in training, and the loss of a fixed batch with seeded weights and a network that sees objects."""
    torch.manual_seed(0)
    model = build_model(trained_table(job), num_classes=4).train()
    images = torch.rand(2, 3, SIDE, SIDE)
    centres, sizes = torch.rand(12, 2) * 0.8 + 0.1, torch.rand(12, 2) * 0.5 + 0.05
    head = torch.stack([torch.arange(12) % 2, torch.arange(12) % 4], dim=1).float()
    targets = torch.cat([head, centres, sizes], dim=1)
    loss = build_loss(model, job.resolved_hyperparameters(), SIDE, job.assignment)
    with torch.no_grad():
        total = float(loss(model(images), targets, (SIDE, SIDE)).total)
    return sum(parameter.numel() for parameter in model.parameters()), round(total, 6)
