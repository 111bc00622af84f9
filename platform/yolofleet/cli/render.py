"""``yolofleet cluster render``: the manifest that runs a job or a search on Kubernetes, printed and not applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from yolofleet.cluster.manifest_work import Work
    from yolofleet.specs.kubernetes import KubernetesSpec

SETTINGS_PREFIX = "kubernetes."


def render(
    spec: Annotated[Path, typer.Argument(help="The job spec or the search space (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Fields to change, of the job or space, or of the settings: kubernetes.images.cuda=NAME:VERSION.",
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--kubernetes", help="The Kubernetes settings (YAML).", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["RayJob", "RayCluster"],
        typer.Option(help="A job with a cluster of its own, or a cluster that jobs are submitted to."),
    ] = "RayJob",
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of printing.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the documents as a JSON list.")] = False,
) -> None:
    """Print the manifest of a job or a search for KubeRay. Nothing is applied."""
    import json
    from importlib.metadata import version

    from yolofleet.cluster.render import manifest_text
    from yolofleet.cluster.render import render as rendered
    from yolofleet.errors import UserError

    changes = overrides or []
    found = _settings(settings, [entry for entry in changes if entry.startswith(SETTINGS_PREFIX)])
    work = _work(spec, [entry for entry in changes if not entry.startswith(SETTINGS_PREFIX)], found)
    documents = rendered(work, found, ray_version=version("ray"), kind=kind)
    text = json.dumps(documents, indent=1) + "\n" if as_json else manifest_text(documents)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {out}; nothing is applied: kubectl apply -f {out}", err=True)


def _settings(path: Path | None, overrides: list[str]) -> KubernetesSpec:
    from yolofleet.specs.document import apply_overrides
    from yolofleet.specs.kubernetes import KubernetesSpec

    changes = [entry.removeprefix(SETTINGS_PREFIX) for entry in overrides]
    if path is None:
        return KubernetesSpec.parse(apply_overrides({}, changes), source="kubernetes")
    return KubernetesSpec.load(path, changes)


def _work(path: Path, overrides: list[str], settings: KubernetesSpec) -> Work:
    from yolofleet.cluster.manifest_work import work_of_job, work_of_search
    from yolofleet.specs.document import read_yaml
    from yolofleet.specs.job import JobSpec
    from yolofleet.specs.search import load_search

    document = read_yaml(path)
    if isinstance(document, dict) and "parameters" in document:
        return work_of_search(load_search(path, overrides), settings, source=str(path))
    return work_of_job(JobSpec.load(path, overrides), settings)
