"""How the documentation site is built: ``make docs``."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

project = "yolofleet"
copyright = "the yolofleet authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "yolofleet"
html_extra_path = ["llms.txt"]
exclude_patterns = ["schema", "_site"]
myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",  # mermaid drawings stay text here
    "myst.xref_missing",  # links to source files; `tests/system/test_site.py` looks that all links hold
]
ROOT = Path(__file__).parent


def unlink_source_files(app: Sphinx, tree: nodes.document, name: str) -> None:
    """Show links to files outside of the pages as text: the site holds the pages alone."""
    for link in list(tree.findall(nodes.reference)):
        target = str(link.get("refuri", ""))
        if target.startswith("../") or target == "schema":
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("doctree-resolved", unlink_source_files)
