"""What the pages of the documentation hold: listings, commands, and what a reader has before."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Everything that readers are shown.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and the line that stands in front of it."""

    language: str
    text: str
    before: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    lines = iter(page.read_text("utf-8").splitlines())
    before = ""
    for line in lines:
        fence = FENCE.match(line)
        if not fence:
            before = line or before
            continue
        indent, mark, language = fence.groups()
        assert not indent and mark == "```", f"{name(page)}: only plain fences are run: {line!r}"
        text = []
        for inner in lines:
            if inner == mark:
                break
            text.append(inner + "\n")
        else:
            raise AssertionError(f"{name(page)}: a block is not closed")
        found.append(Block(language, "".join(text), before))
    return found


def listings(page: Path) -> str:
    """All Python of a page, which is one program."""
    return "\n".join(b.text for b in blocks(page) if b.language == "python")


def commands(page: Path) -> list[list[str]]:
    """The command lines that a page shows."""
    lines = "".join(b.text for b in blocks(page) if b.language == "sh").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line]
