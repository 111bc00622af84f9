from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "yolofleet"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_everything_that_is_no_code_is_packed_into_the_wheel() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["yolofleet"]
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert any(name.startswith("models/zoo/") for name in data)
    assert "py.typed" in data
    assert [name for name in data if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_every_dependency_is_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = SETTINGS["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {entry.split(">")[0].split("[")[0].split("=")[0].strip().lower().replace("_", "-") for entry in wanted}
    assert names - pinned == set()


def test_every_file_says_nothing_of_the_machine_that_made_it() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *PACKAGE.rglob("*.py"), ROOT / "Makefile"]:
        text = path.read_text()
        assert f"{Path.home()}/" not in text, path
        assert f"{ROOT}/" not in text, path
