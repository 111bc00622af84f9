"""``yolofleet cluster``: what a cluster is asked for, and what works on it."""

from __future__ import annotations

import typer

from yolofleet.cli import plan, render

app = typer.Typer(help="Clusters: what a job will need of its nodes, and manifests.", no_args_is_help=True)
app.command("plan")(plan.plan)
app.command("render")(render.render)
