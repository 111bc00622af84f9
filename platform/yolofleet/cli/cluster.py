"""``yolofleet cluster``: is a cluster fit for work, what does a job need of each node, manifests for Kubernetes.

``render`` prints a manifest and applies nothing; ``doctor`` and ``plan`` have modules of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yolofleet.cli.cluster_plan import plan
from yolofleet.cli.doctor import doctor
from yolofleet.cli.options import SpecArgument
from yolofleet.core.terminal import note, show

if TYPE_CHECKING:
    from yolofleet.cluster.manifest_work import Work
    from yolofleet.specs.kubernetes import KubernetesSpec

SETTINGS_PREFIX = "kubernetes."

app = typer.Typer(
    help="Clusters: check one, forecast what a job needs, write Kubernetes manifests.", no_args_is_help=True
)
app.command("doctor")(doctor)
app.command("plan")(plan)


@app.command("render")
def render(
    spec: SpecArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields to change, of the job or space, or of the settings: kubernetes.images.cuda=NAME:VERSION.",
        ),
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option("--kubernetes", help="The Kubernetes settings (YAML), path or s3:// URL.", show_default=False),
    ] = None,
    kind: Annotated[
        Literal["RayJob", "RayCluster"],
        typer.Option(help="RayJob: a job with its own cluster; RayCluster: a cluster for jobs that you submit."),
    ] = "RayJob",
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of printing.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the documents as a JSON list.")] = False,
) -> None:
    """Print the KubeRay manifest of a job or a search. It applies nothing."""
    import json
    from importlib.metadata import version

    from yolofleet.cluster.kuberay_manifest import describe_pods, manifest_text, render_manifest
    from yolofleet.core.errors import UserError

    changes = overrides or []
    kubernetes = _read_settings(settings, [entry for entry in changes if entry.startswith(SETTINGS_PREFIX)])
    work = _read_work(spec, [entry for entry in changes if not entry.startswith(SETTINGS_PREFIX)], kubernetes)
    documents = render_manifest(work, kubernetes, ray_version=version("ray"), kind=kind)
    note(describe_pods(work, documents[-1]))
    text = json.dumps(documents, indent=1) + "\n" if as_json else manifest_text(documents)
    if out is None:
        show(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    note(f"wrote {out}; nothing is applied: kubectl apply -f {out}")


def _read_settings(path: str | None, overrides: list[str]) -> KubernetesSpec:
    from yolofleet.specs.base import apply_overrides
    from yolofleet.specs.kubernetes import KubernetesSpec
    from yolofleet.storage import open_file

    changes = [entry.removeprefix(SETTINGS_PREFIX) for entry in overrides]
    if path is None:
        return KubernetesSpec.parse(apply_overrides({}, changes), source="kubernetes")
    return KubernetesSpec.load(open_file(path), changes)


def _read_work(path: str, overrides: list[str], settings: KubernetesSpec) -> Work:
    from yolofleet.cluster.manifest_work import work_of_job, work_of_search
    from yolofleet.specs.job import JobSpec
    from yolofleet.specs.search import load_search
    from yolofleet.specs.yaml_document import read_yaml
    from yolofleet.storage import open_file

    file = open_file(path)
    document = read_yaml(file)
    if isinstance(document, dict) and "parameters" in document:
        return work_of_search(load_search(file, overrides), settings, source=path)
    return work_of_job(JobSpec.load(file, overrides), settings)
