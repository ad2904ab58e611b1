"""The code map leads to files that exist."""

import re

import pytest

from tests.docs.pages import DOCS, ROOT

MAP = (DOCS / "architecture.md").read_text().partition("## Data flow")[0]


@pytest.mark.parametrize("path", re.findall(r"`(\w+/[\w/]*(?:\.\w+)?)`", MAP))
def test_the_code_map_leads_to_files(path: str) -> None:
    assert (ROOT / path).exists()
