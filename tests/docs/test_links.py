"""Every link in the documentation leads to a file, and every anchor to a heading."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, FENCE, ROOT, TEXTS, name

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "CHANGELOG.md", *sorted(DOCS.glob("results/*/*.md"))], ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text())):
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


def test_every_page_is_part_of_the_site() -> None:
    listed = set(re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.glob("*.md")} | {"adr/index.md"}
    assert listed == pages


def test_every_decision_is_listed() -> None:
    index = (DOCS / "adr" / "index.md").read_text()
    assert [path.name for path in sorted(DOCS.glob("adr/0*.md"))] == re.findall(r"\((0[\w-]+\.md)\)", index)
