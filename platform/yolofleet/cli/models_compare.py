"""``yolofleet models compare``: models evaluated here among those that the paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, TrackingUri, print_result
from yolofleet.core.terminal import note

if TYPE_CHECKING:
    from yolofleet.evaluation.model_comparison import MeasuredModel
    from yolofleet.search.directory import SearchDirectory


def compare(
    measured: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEASURED",
            help="Run directories, search directories (all trials that have trained to their end), NAME@ALIAS.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with charts to this file.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Compare models measured here with the published ones: AP, parameters, FLOPs and speed."""
    from yolofleet.core.errors import UserError
    from yolofleet.core.registered_names import registered_uri
    from yolofleet.evaluation.model_comparison import comparison_document, comparison_lines, render_comparison
    from yolofleet.storage import open_storage

    if tracking_uri is not None and not measured:
        raise UserError("--tracking-uri: nothing is looked up there; name a NAME@ALIAS to compare")
    sources = [registered_uri(source) or source for source in measured or []]
    models = [model for source in sources for model in _measured_models(source, tracking_uri)]
    if html is not None:
        open_storage(html.absolute().parent).put(html.name, render_comparison(models).encode())
        note(f"page: {html}")
    print_result(comparison_document(models), comparison_lines(models), as_json=as_json)


def _measured_models(source: str, tracking_uri: str | None) -> Iterator[MeasuredModel]:
    """Yield what was evaluated in a run or a search, or of a version.

    Raises:
        UserError: The source is none of these, or holds no evaluation.
    """
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.storage import open_storage

    if not source.startswith("models:/"):
        search = SearchDirectory(open_storage(source))
        if search.exists():
            yield from _trials(search)
            return
    yield _detector(source, tracking_uri)


def _trials(search: SearchDirectory) -> Iterator[MeasuredModel]:
    from yolofleet.core.errors import UserError
    from yolofleet.evaluation.model_comparison import MeasuredModel
    from yolofleet.search.results import load_results
    from yolofleet.search.space import Space

    results = load_results(search)
    space = Space(results.spec, source=search.url)
    done = [entry for entry in results.entries if entry.completed and "val_AP" in entry.measured]
    if not done:
        raise UserError(f"{search.url}: no trial has trained to its end, so no AP is known yet")
    for entry in done:
        job, labels = space.job(entry.values), [str(value) for value in entry.values.values()]
        is_named = len(labels) == 1 and isinstance(results.spec.parameters[next(iter(entry.values))].choice, dict)
        yield MeasuredModel(
            model=labels[0] if is_named else f"trial {entry.number}",
            source=search.url,
            data=job.data.val,
            size=job.data.image_size,
            parameters=entry.figures["parameters"] / 1e6,
            gflops=entry.figures.get("gflops_with_bias", entry.figures["gflops"]),
            figures=_percent({name.removeprefix("val_"): value for name, value in entry.measured.items()}),
            protocol=job.evaluation.protocol,
            milliseconds=entry.figures.get("latency_milliseconds"),
            device=results.spec.latency_device,
        )


def _detector(source: str, tracking_uri: str | None) -> MeasuredModel:
    """Return a run's or a version's detector: the cost of its block table, and its recorded evaluation."""
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.core.errors import UserError
    from yolofleet.evaluation.detector_package import read_card
    from yolofleet.evaluation.model_comparison import MeasuredModel
    from yolofleet.models.profile import cost
    from yolofleet.models.wiring import wire

    with package_folder(source, tracking_uri) as folder:
        card = read_card(folder)
    facts = recorded_facts(source, tracking_uri)
    figures = {name.removeprefix("figures."): value for name, value in facts.items() if name.startswith("figures.")}
    if "AP" not in figures:
        raise UserError(
            f"{source}: holds no evaluation, so its AP is not known; give a run that has ended, a search, or a "
            "registered version that was evaluated"
        )
    size = (card.image_size, card.image_size)
    deployed = cost(wire(card.model), num_classes=len(card.classes), size=size, folded=True, auxiliary=False)
    return MeasuredModel(
        model=source.removeprefix("models:/") if source.startswith("models:/") else source.rstrip("/").split("/")[-1],
        source=source,
        data=facts.get("data_url.val", "unknown data"),
        size=card.image_size,
        parameters=deployed.parameters / 1e6,
        gflops=deployed.gflops_with_bias,
        figures=_percent(figures),
        protocol=facts.get("evaluation.protocol", "square"),
    )


def recorded_facts(source: str, tracking_uri: str | None) -> Mapping[str, str]:
    """Return what was recorded of a run or a version, by dotted path."""
    from yolofleet.storage import open_storage
    from yolofleet.tracking.mirrored_run import flat_params
    from yolofleet.tracking.run_directory import RunDirectory

    if not source.startswith("models:/"):
        return flat_params(RunDirectory(open_storage(source)).facts())
    from yolofleet.registry.versions import find_version
    from yolofleet.tracking.mlflow_store import find_tracking_uri

    return find_version(find_tracking_uri(tracking_uri), source).facts


def _percent(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return AP in percent by the keys of the published figures; what had nothing to measure is left out."""
    from yolofleet.evaluation.published import FIGURES

    return {key: 100 * float(figures[name]) for key, (_, name) in FIGURES.items() if name in figures}
