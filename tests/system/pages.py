"""The lines of shell that the pages show, with the section where each stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = re.compile(r"\(needs .+\)$")


@dataclass(frozen=True)
class ShellLine:
    """One command of a page.

    Attributes:
        page: Name of the page's file.
        sections: The headings that it stands under, the page's own first.
        text: The command, whole, without its comment.
    """

    page: str
    sections: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """Page, section and command in one text."""
        return f"{self.page}: {self.sections[-1]}: {self.text}"

    @property
    def needs(self) -> str | None:
        """What a section says that its commands need: an engine, a cluster, an account."""
        found = [match.group() for title in self.sections if (match := NEEDS.search(title))]
        return found[-1] if found else None


def shell_blocks(page: Path) -> list[tuple[tuple[str, ...], str]]:
    """The page's blocks of shell, each with the headings that it stands under."""
    found: list[tuple[tuple[str, ...], str]] = []
    sections: list[str] = []
    language: str | None = None
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            if language is None:
                language, lines = line[3:], []
                continue
            if language in ("sh", "bash") or (not language and lines[0].startswith("yolofleet ")):
                found.append((tuple(sections), "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
        elif heading := re.match(r"(#+) (.+)", line):
            sections[len(heading[1]) - 1 :] = [heading[2]]
    return found


def shell_lines(page: Path) -> list[ShellLine]:
    """Every command of a page; a line that goes on is one with the next."""
    return [
        ShellLine(page.name, sections, re.split(r"\s{2,}| #", line.strip())[0])
        for sections, block in shell_blocks(page)
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()
        if line.strip() and not line.startswith("#")
    ]
