"""Copy the headline table of each report below docs/results/ into docs/results.md.

    python scripts/results_page.py        (`make results` runs it; tests/test_results_page.py holds the page to it)

A block of the page starts with `<!-- report NAME -->` and ends with `<!-- end -->`.
"""

import re
import textwrap
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGE: Final = DOCS / "results.md"
_BLOCK: Final = re.compile(r"(<!-- report (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLE: Final = re.compile(r"^\| lane \|.*?\n(?=\n)", re.DOTALL | re.MULTILINE)
_MEASURED: Final = re.compile(r"^Measured (?P<where>.*); Trident (?P<revision>\S+); `(?P<command>.*)`\.$", re.MULTILINE)


def headline(name: str) -> str:
    """The headline table of a report, with date, machine, revision and command.

    Raises:
        ValueError: the report has no such table or no such line.
    """
    report = (DOCS / "results" / name / "report.md").read_text()
    table, measured = _TABLE.search(report), _MEASURED.search(report)
    if table is None or measured is None:
        raise ValueError(f"docs/results/{name}/report.md has no headline table, or does not say how it was measured")
    how = f"Measured {measured['where']}, revision `{measured['revision']}`. [Full report](results/{name}/report.md)."
    return f"{textwrap.fill(how, 99)}\n\n```text\n{measured['command']}\n```\n\n{table[0]}"


def render(page: str) -> str:
    """The page with every block replaced by the headline of its report."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{headline(block[2])}\n{block[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
