"""Pages of one purpose, in short lines, with the words of the glossary."""

import re
from pathlib import Path

import pytest

from scripts.generate_docs import MARKED
from tests.docs.pages import FENCE, PAGES, ROOT, TEXTS, name, prose

# The word to use instead is in docs/concepts.md.
AVOIDED = re.compile(r"\b(pictures?|under way|repl(?:y|ies)|somebody else)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages_are_short(path: Path) -> None:
    """At most about 150 lines, besides code and generated tables."""
    assert len(FENCE.sub("", MARKED.sub("", path.read_text())).splitlines()) <= 155


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_lines_are_short(path: Path) -> None:
    assert [line for line in prose(path) if len(line) > 100 and not line.startswith("![")] == []


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_words_are_those_of_the_glossary(path: Path) -> None:
    assert AVOIDED.findall(re.sub(r"`[^`]*`", "", "\n".join(prose(path)))) == []


def test_the_readme_has_at_most_700_words() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700
