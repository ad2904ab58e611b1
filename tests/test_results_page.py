"""The tables of docs/results.md are those of the reports."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_has_the_headlines_of_the_reports() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "results_page.py"))
    page = (ROOT / "docs" / "results.md").read_text()
    assert page.count("<!-- report ") == len(list((ROOT / "docs" / "results").glob("*/report.md")))
    assert script["render"](page) == page
