"""``yolofleet registry``: register detectors in the MLflow Model Registry, list them and show them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yolofleet.cli.options import JsonOption, TrackingUri, print_result
from yolofleet.core.errors import UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.registry.lineage import Lineage
    from yolofleet.registry.versions import Version

MOST_SHARDS_SHOWN = 5

app = typer.Typer(help="Register, list, show and promote detectors in the MLflow Model Registry.", no_args_is_help=True)

EvaluationData = Annotated[
    str | None, typer.Option("--data", help="Evaluate it on this dataset and register its figures.", show_default=False)
]
EvaluationProtocol = Annotated[
    Literal["square", "published"],
    typer.Option("--protocol", help="With --data: 'square' (fp32) or 'published' (rectangular, fp16 on a GPU)."),
]
EvaluationDevice = Annotated[str, typer.Option("--device", help="Where to evaluate it: auto, cpu, cuda or cuda:N.")]
Alias = Annotated[str, typer.Option("--alias", help="Alias that points to the new version.")]
Experiment = Annotated[str, typer.Option("--experiment", help="MLflow experiment to store it in.")]


@app.command("register")
def register(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory (path or s3:// URL) or a detector package folder.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the registered model; created if it does not exist.")],
    alias: Alias = "candidate",
    data: EvaluationData = None,
    protocol: EvaluationProtocol = "square",
    device: EvaluationDevice = "auto",
    experiment: Experiment = "yolofleet",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Register a detector with its weights, inference code and figures."""
    from tempfile import TemporaryDirectory

    from yolofleet.core.file_names import DETECTOR_CARD_NAME
    from yolofleet.registry.evaluation_record import Evidence, evaluate_package
    from yolofleet.registry.register import register_detector, register_run
    from yolofleet.storage import open_storage
    from yolofleet.tracking.mlflow_store import check_reachable
    from yolofleet.tracking.run_directory import RunDirectory

    _check_protocol(protocol, data)
    storage = open_storage(model)
    uri = _registry_uri(tracking_uri, model)
    check_reachable(uri)
    if storage.exists(DETECTOR_CARD_NAME):
        with TemporaryDirectory(prefix="yolofleet-package-") as folder:
            package = _local_package(model, Path(folder))
            evidence = Evidence()
            if data is not None:
                evidence = evaluate_package(package, data, device, protocol=protocol)
            version = register_detector(package, name, uri, evidence, experiment=experiment, alias=alias)
    elif data is not None:
        raise UserError(f"{model} is a run, which was evaluated when it ended: --data is for detector packages")
    else:
        version = register_run(RunDirectory(storage), name, uri, experiment=experiment, alias=alias)
    print_result(version.document(), _format_version(version), as_json=as_json)


@app.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A published checkpoint (.pt), or its https:// URL; nothing in it is executed."
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The model it belongs to, e.g. yolov7.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the registered model; default: --model.")] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="SHA-256 of the file; needed for a URL.", show_default=False)
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes", help="COCO annotations that name the classes; default: the file's own, or COCO's 80."
        ),
    ] = None,
    alias: Alias = "candidate",
    data: EvaluationData = None,
    protocol: EvaluationProtocol = "square",
    device: EvaluationDevice = "auto",
    experiment: Experiment = "yolofleet",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Register a published checkpoint, in its deployed form."""
    from tempfile import TemporaryDirectory

    from yolofleet.registry.evaluation_record import Evidence, evaluate_package
    from yolofleet.registry.import_checkpoint import package_checkpoint
    from yolofleet.registry.register import register_detector
    from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri

    _check_protocol(protocol, data)
    uri = tracking_uri or find_tracking_uri(None)
    check_reachable(uri)
    with TemporaryDirectory(prefix="yolofleet-package-") as folder:
        package = Path(folder)
        path, source = _checkpoint_file(file, sha256)
        facts = package_checkpoint(path, model, package, annotations=classes, source=source)
        evidence = Evidence(facts)
        if data is not None:
            evidence = evaluate_package(package, data, device, facts, protocol=protocol)
        name = name or Path(model).stem
        version = register_detector(package, name, uri, evidence, experiment=experiment, alias=alias)
    print_result(version.document(), _format_version(version), as_json=as_json)


def _checkpoint_file(file: str, sha256: str | None) -> tuple[Path, str | None]:
    """Return the file to import, and the URL that it was fetched from."""
    from yolofleet.core.local_files import file_sha256
    from yolofleet.training.setup.pretrained import fetch_weights

    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256 {sha256:.80}: a SHA-256 is 64 hexadecimal digits, as 'sha256sum FILE' prints them")
    if "://" in file:
        if sha256 is None:
            raise UserError(
                f"{file}: the file behind an address can change; give its --sha256 DIGEST, from its publisher, or "
                f"from 'sha256sum FILE' of a copy that you trust"
            )
        return fetch_weights(file, sha256), file
    if sha256 is not None and Path(file).is_file() and (found := file_sha256(Path(file))) != sha256.lower():
        raise UserError(f"{file}: its SHA-256 is {found}, not {sha256.lower()}; it was not read")
    return Path(file), None


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only versions of this registered model.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Only versions that used this data: digest of a manifest or a shard, or its start."
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered versions, the newest first."""
    from yolofleet.registry.versions import browse_versions

    uri = reachable_registry(tracking_uri)
    if data is not None:
        _list_uses(uri, data, name, as_json)
        return
    versions = browse_versions(uri, name)
    print_result([version.document() for version in versions], _table([(v, "") for v in versions]), as_json=as_json)
    if not versions and not as_json:
        note("nothing is registered yet")


def _list_uses(uri: str, data: str, name: str | None, as_json: bool) -> None:
    from yolofleet.registry.lineage import PARTS, find_uses  # imports torch

    uses = find_uses(uri, data, name)
    words = dict(zip(PARTS, ("trained on it", "evaluated on it"), strict=True))
    documents = [{**use.version.document(), "data": list(use.parts)} for use in uses]
    rows = [(use.version, " and ".join(words[part] for part in use.parts)) for use in uses]
    print_result(documents, _table(rows), as_json=as_json)
    if not uses and not as_json:
        note(f"no version used data {data}")


@app.command("show")
def show(
    reference: Annotated[
        str, typer.Argument(metavar="VERSION", help="NAME, NAME@ALIAS or NAME/VERSION, with or without models:/.")
    ],
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Show a version: aliases, figures, and its origin down to the shards."""
    from yolofleet.registry.lineage import find_lineage
    from yolofleet.registry.versions import find_version

    uri = reachable_registry(tracking_uri)
    version = find_version(uri, reference)
    lineage = find_lineage(uri, version)
    lines = [*_format_version(version), *_format_lineage(lineage)]
    print_result({**version.document(), "lineage": lineage.document()}, lines, as_json=as_json)


def reachable_registry(given: str | None) -> str:
    """Return the MLflow store of a command, after checking that it answers."""
    from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri

    uri = find_tracking_uri(given)
    check_reachable(uri)
    return uri


def _check_protocol(protocol: str, data: str | None) -> None:
    if data is None and protocol != "square":
        raise UserError(f"--protocol {protocol} says how --data is evaluated: give --data, too")


def _registry_uri(given: str | None, model: str) -> str:
    """Return the store to register in, which may be new: by default beside the run, of a package that of ``runs``."""
    from yolofleet.storage import open_storage
    from yolofleet.tracking.mlflow_store import default_tracking_uri, find_tracking_uri
    from yolofleet.tracking.run_directory import RunDirectory

    if (named := given or os.environ.get("MLFLOW_TRACKING_URI")) is not None:
        return named
    is_run = RunDirectory(open_storage(model)).exists()
    parent = (model.rstrip("/").rpartition("/")[0] or ".") if is_run else "runs"
    return default_tracking_uri(parent) or find_tracking_uri()


def _local_package(model: str, folder: Path) -> Path:
    """Return the package's folder, downloaded into ``folder`` if it is remote."""
    from yolofleet.core.file_names import DETECTOR_CARD_NAME
    from yolofleet.storage import open_storage

    storage = open_storage(model)
    index = storage.local_path(DETECTOR_CARD_NAME)
    if index is not None:
        return index.parent
    for entry in storage.list():
        storage.download(entry.key, folder / entry.key)
    return folder


def _table(rows: Sequence[tuple[Version, str]]) -> Iterator[str]:
    """Yield the versions as a table, each with its date, its figures, and what else is to be said of it."""
    if not rows:
        return
    width = max(len(version.uri) for version, _ in rows)
    yield f"{'VERSION':<{width}}  {'REGISTERED':<16}  {'AP':>6}  {'AP50':>6}  ALIASES"
    for version, how_used in rows:
        ap, ap50 = (_figure(version, name) for name in ("AP", "AP50"))
        protocol = version.facts.get("evaluation.protocol", "square")
        notes = [" ".join(f"@{alias}" for alias in version.aliases), how_used]
        notes += [f"{protocol} {version.facts.get('evaluation.precision', '')}"] if protocol != "square" else []
        shown = ", ".join(filter(None, notes))
        yield f"{version.uri:<{width}}  {_when(version):<16}  {ap:>6}  {ap50:>6}  {shown}".rstrip()


def _figure(version: Version, name: str) -> str:
    try:
        return f"{float(version.facts[f'figures.{name}']):.4f}"
    except (KeyError, ValueError):
        return "-"


def _when(version: Version) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created_milliseconds / 1000))


def _format_version(version: Version) -> Iterator[str]:
    yield version.uri
    yield f"  aliases: {' '.join(f'@{alias}' for alias in version.aliases) or 'none'}"
    yield f"  run: {version.run_id or 'none'}"
    yield f"  registered: {_when(version)}"
    yield f"  digest: {version.digest}"
    for key, value in version.facts.items():
        yield f"  {key}: {_figure(version, key.removeprefix('figures.')) if key.startswith('figures.') else value}"


def _format_lineage(lineage: Lineage) -> Iterator[str]:
    yield "lineage"
    yield f"  run: {lineage.run_id or 'none'} {lineage.run_directory or ''}".rstrip()
    yield f"  job: {f'sha256 {lineage.job_sha256}' if lineage.job_sha256 else 'not recorded'}"
    for source in lineage.data:
        yield f"  {source.part}: manifest {source.manifest_sha256} {source.url or ''}".rstrip()
        if source.shards is None:
            yield "    the manifest is not in the version: its shards are not known"
            continue
        for name, sha256 in source.shards[:MOST_SHARDS_SHOWN]:
            yield f"    shard {name}: {sha256}"
        if len(source.shards) > MOST_SHARDS_SHOWN:
            yield f"    and {plural(len(source.shards) - MOST_SHARDS_SHOWN, 'more shard')}; --json shows all"
    for generation, parent in enumerate(lineage.parents):
        yield f"  {'parent' if generation == 0 else 'its parent'}: {parent}"
