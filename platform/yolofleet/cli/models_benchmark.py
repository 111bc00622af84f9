"""``yolofleet models benchmark``: how fast models are here, and their AP against that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yolofleet.cli.options import Device, JsonOption, TrackingUri, print_result
from yolofleet.core.errors import UserError
from yolofleet.core.terminal import note

if TYPE_CHECKING:
    import torch
    from torch import nn

    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.inference_form import Precision
    from yolofleet.evaluation.latency import BenchmarkedModel, Format

FORMATS = ("torch", "onnx")
NUM_CLASSES = 80


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Names of models, block tables (YAML), run directories, detector packages, NAME@ALIAS.",
            show_default=False,
        ),
    ],
    device: Device = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas, such as 1,32.")] = "1",
    format: Annotated[str, typer.Option(help="torch, onnx (ONNX Runtime, on a CPU), or torch,onnx.")] = "torch",
    precision: Annotated[
        Literal["auto", "fp32", "fp16"], typer.Option(help="auto: fp16 on a GPU, as in the paper, else fp32.")
    ] = "auto",
    image_size: Annotated[int | None, typer.Option(help="Side of the images. Default: the model's.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Most passes to count for each line.")] = 100,
    seconds: Annotated[
        float, typer.Option(min=0, help="Start no more passes of a line after this time, but count at least three.")
    ] = 20.0,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the chart to this file.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the latency of models: percentiles, images per second, and AP if it is known."""
    from yolofleet.cli.progress import show_progress
    from yolofleet.core.registered_names import registered_uri
    from yolofleet.evaluation.detector import select_device
    from yolofleet.evaluation.latency import Environment
    from yolofleet.evaluation.latency_page import benchmark_document, benchmark_lines, render_benchmark
    from yolofleet.storage import open_storage

    chosen = select_device(device, "--device")
    batches, formats = _parse_batches(batch), _parse_formats(format)
    if "onnx" in formats and chosen.type != "cpu":
        raise UserError("--format onnx: ONNX Runtime computes on the CPU here; add --device cpu, or leave onnx out")
    exact: Precision = "fp32" if precision == "fp32" or (precision == "auto" and chosen.type == "cpu") else "fp16"
    if exact == "fp16" and chosen.type == "cpu":
        note("warning: a CPU is slower in half precision than in fp32; what is measured says nothing about a GPU")
    wanted = _Wanted(chosen, batches, formats, exact, image_size, repetitions, seconds)
    environment = Environment.of(chosen)
    with show_progress("measuring", len(models) * len(batches) * len(formats)) as advance:
        sources = [registered_uri(model) or model for model in models]
        measured = [_measured(source, tracking_uri, wanted, advance) for source in sources]
    if html is not None:
        open_storage(html.absolute().parent).put(html.name, render_benchmark(environment, measured).encode())
        note(f"page: {html}")
    print_result(benchmark_document(environment, measured), benchmark_lines(environment, measured), as_json=as_json)


@dataclass(frozen=True)
class _Wanted:
    """What is measured of every model."""

    device: torch.device
    batches: tuple[int, ...]
    formats: tuple[Format, ...]
    precision: Precision
    image_size: int | None
    repetitions: int
    seconds: float


def _parse_batches(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise UserError(f"--batch {text!r}: write numbers of images from 1 to 4096, separated by commas, as 1,32")
    return tuple(dict.fromkeys(map(int, parts)))


def _parse_formats(text: str) -> tuple[Format, ...]:
    parts = [part.strip() for part in text.split(",")]
    if unknown := [part for part in parts if part not in FORMATS]:
        raise UserError(f"--format {unknown[0]!r} is not one of {', '.join(FORMATS)}; separate several by commas")
    return tuple(dict.fromkeys(parts))  # type: ignore[arg-type]


def _measured(
    source: str, tracking_uri: str | None, wanted: _Wanted, advance: Callable[[int], None]
) -> BenchmarkedModel:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.detector_package import check_fit
    from yolofleet.evaluation.latency import BenchmarkedModel, measure

    with _package(source, tracking_uri) as (folder, known):
        detector = Detector.load(folder, wanted.device)
        size = wanted.image_size or detector.card.image_size
        check_fit(detector.model, len(detector.classes), size)
        timings = []
        for form in wanted.formats:
            # ONNX Runtime computes in fp32 whatever torch does beside it.
            precision: Precision = "fp32" if form == "onnx" else wanted.precision
            network = _network(detector, folder, form, precision)
            for batch in wanted.batches:
                timings.append(
                    measure(
                        network,
                        size,
                        wanted.device,
                        format=form,
                        precision=precision,
                        batch=batch,
                        repetitions=wanted.repetitions,
                        most_seconds=wanted.seconds,
                    )
                )
                advance(1)
    ap, evaluated = known(size)
    name = source.removeprefix("models:/") if source.startswith("models:/") else source.rstrip("/").split("/")[-1]
    return BenchmarkedModel(model=name, size=size, timings=tuple(timings), ap=ap, evaluated=evaluated)


def _network(detector: Detector, folder: Path, form: Format, precision: Precision) -> nn.Module:
    """Return a detector's network as it predicts in a format, exported where the package holds no ONNX file."""
    from yolofleet.evaluation.inference_form import inference_form
    from yolofleet.export.exporter import add_network
    from yolofleet.export.runtime import NETWORK_NAME, OnnxNetwork

    if form == "torch":
        return detector.network if precision == "fp32" else inference_form(detector.model, precision=precision)
    if (folder / NETWORK_NAME).is_file():
        return OnnxNetwork(folder / NETWORK_NAME)
    from shutil import copytree

    with TemporaryDirectory(prefix="yolofleet-benchmark-") as temporary:
        package = Path(copytree(folder, Path(temporary) / "detector"))
        add_network(package)
        return OnnxNetwork(package / NETWORK_NAME)


KnownAp = Callable[[int], tuple[float | None, str | None]]
"""Returns AP in percent at an image size, and how it was measured; None for the second where the paper prints it."""


@contextmanager
def _package(source: str, tracking_uri: str | None) -> Iterator[tuple[Path, KnownAp]]:
    """Yield a MODEL as a detector package, and what is known of its AP; models of the zoo get random weights.

    Raises:
        UserError: There is no such model.
    """
    from yolofleet.models.zoo import zoo_names

    if source in zoo_names() or (source.endswith((".yaml", ".yml")) and Path(source).is_file()):
        from yolofleet.evaluation.detector_package import save_detector
        from yolofleet.models import build_model
        from yolofleet.models.zoo import resolve

        table = resolve(source)
        with TemporaryDirectory(prefix="yolofleet-benchmark-") as folder:
            classes = [(number, str(number)) for number in range(NUM_CLASSES)]
            model = build_model(table, NUM_CLASSES, deployed=True)
            yield save_detector(Path(folder), model, classes, table.image_size), lambda size: _published(source, size)
        return
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.cli.models_compare import recorded_facts
    from yolofleet.evaluation.detector_package import read_card

    with package_folder(source, tracking_uri) as path:
        facts, own = recorded_facts(source, tracking_uri), read_card(path).image_size
        ap = float(facts["figures.AP"]) * 100 if "figures.AP" in facts else None
        how = f"{facts.get('data_url.val', 'unknown data')}, {facts.get('evaluation.protocol', 'square')} protocol"
        yield path, lambda size: (ap, how) if ap is not None and size == own else (None, None)


def _published(name: str, size: int) -> tuple[float | None, str | None]:
    """Return the AP that the paper prints of a model of the zoo at an image size."""
    from yolofleet.evaluation.published import published_results

    rows = (row for row in published_results() if row.precision is None and row.ap is not None)
    found = (float(row.ap or 0) for row in rows if row.model.lower() == name and row.size == size)
    return next(found, None), None
