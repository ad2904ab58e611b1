"""What the pages say about settings, endpoints, errors and results is what the code and the last results say."""

import re
from pathlib import Path

import pytest

from scripts.generate_docs import PARTS, generated
from tests.docs.pages import DOCS, ROOT, name

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    assert path.read_text() == generated(path.read_text()), "run `make docs`"


def test_every_part_is_on_a_page() -> None:
    used = [part for path in PAGES for part in re.findall(r"<!-- generated: ([a-z-]+) -->", path.read_text())]
    assert sorted(used) == sorted(PARTS)
