"""Whether a node has the versions that jobs are checked with, and whether they belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from yolofleet.cluster.doctor.line import Line
from yolofleet.cluster.versions import installed_versions

SUBJECT = "versions"
SHOWN = ("python", "ray", "torch", "mlflow", "yolofleet")


@dataclass(frozen=True)
class Installed:
    """What a node has.

    Attributes:
        versions: Version of Python and of each pinned package.
        yolofleet: Version of the installed yolofleet; None where it is not installed.
        unmet: What the installed yolofleet requires and does not find, a line each.
    """

    versions: Mapping[str, str]
    yolofleet: str | None
    unmet: tuple[str, ...] = ()


def look_at_versions() -> Installed:
    """Return what this machine has."""
    try:
        ours = metadata.version("yolofleet")
    except metadata.PackageNotFoundError:
        return Installed(installed_versions(), None)
    return Installed(installed_versions(), ours, tuple(_unmet(metadata.requires("yolofleet") or [])))


def _unmet(requirements: list[str]) -> list[str]:
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    return found


def judge_versions(place: str, found: Installed, wanted: Installed) -> Line:
    """Compare a node with the place that jobs are sent from."""
    others = [
        f"{name} {found.versions.get(name, 'missing')} ({version} is wanted)"
        for name, version in wanted.versions.items()
        if found.versions.get(name) != version
    ]
    if others:
        return Line(place, SUBJECT, "fail", "; ".join(others), "use the image, or constraints.txt, of this yolofleet")
    if found.unmet:
        return Line(place, SUBJECT, "fail", "; ".join(found.unmet), "install with constraints.txt (make install)")
    if found.yolofleet not in (None, wanted.yolofleet):
        return Line(
            place, SUBJECT, "warn", f"yolofleet {found.yolofleet} ({wanted.yolofleet} is wanted)",
            "use the image of this version; a job that is submitted brings its own source, train does not",
        )  # fmt: skip
    all_of_them = {**found.versions, "yolofleet": found.yolofleet or "sent with each job"}
    shown = ", ".join(f"{name} {all_of_them[name]}" for name in SHOWN if name in all_of_them)
    return Line(place, SUBJECT, "ok", shown)
