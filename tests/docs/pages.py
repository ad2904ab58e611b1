"""The repository's Markdown, as the tests of the documentation read it."""

import re
import shlex
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
RESULTS: Final = DOCS / "results"
# Written by people; reports below docs/results are written by `trident report`.
PAGES: Final = sorted(path for path in DOCS.rglob("*.md") if not path.is_relative_to(RESULTS))
TEXTS: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "model_repository/README.md", *PAGES]
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> list[str]:
    """The lines of a page that are neither code nor tables."""
    text = FENCE.sub("", path.read_text())
    return [line for line in text.splitlines() if not line.startswith(("|", "    "))]


def console_lines(path: Path) -> list[str]:
    """The commands in a page's console blocks; continued lines are joined, comments dropped."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(path.read_text()) if language == "console"]
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def calls(path: Path, program: str) -> list[list[str]]:
    """A page's calls of a program, in console blocks and in the text, as argument lists."""
    inline = re.findall(rf"`({program} [^`]*)`", FENCE.sub("", path.read_text()))
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in (*console_lines(path), *inline)]
    return [shlex.split(line)[1:] for line in lines if line.split()[0] == program]
