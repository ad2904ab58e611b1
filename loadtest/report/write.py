"""Renders the templates with a result."""

import os
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from loadtest.report.plots import plots
from loadtest.report.verdict import verdict
from loadtest.result import Result
from loadtest.summary import headlines, milliseconds, rows

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"


def write_report(result: Result, folder: Path) -> Path:
    """Write report.html, report.md and the plots into `folder`. Returns the path of the HTML."""
    drawn = plots(result)
    files = {title: f"plot-{number}.svg" for number, title in enumerate(drawn, 1)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=select_autoescape(["html.j2"]),
    )
    environment.filters["ms"] = milliseconds
    content = {
        "result": result,
        "verdict": verdict(result),
        "headlines": headlines(result),
        "rows": rows(result),
        "plots": drawn,
        "plot_files": files,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for title, svg in drawn.items():
        _replace(folder / files[title], svg)
    for name in (HTML, MARKDOWN):
        _replace(folder / name, environment.get_template(f"{name}.j2").render(content))
    return folder / HTML


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
