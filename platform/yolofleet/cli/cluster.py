"""``yolofleet cluster``: what a cluster is asked for, and what works on it."""

from __future__ import annotations

import typer

from yolofleet.cli import doctor, plan, render

app = typer.Typer(help="Clusters: whether they are fit, what a job will need, manifests.", no_args_is_help=True)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("render")(render.render)
