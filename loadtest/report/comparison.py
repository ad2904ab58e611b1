"""From a comparison to one HTML file: a verdict, a plot of every ratio with its interval, and a table."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.axes import Axes

from bundle.atomic_file import atomic_write
from loadtest.analysis.compare import ResultComparison
from loadtest.benchmark.result import Result
from loadtest.report.canvas import INK, RED, svg

_COLORS = {"slower": RED, "faster": "#4aa564", "tie": INK}


def comparison_verdict(comparison: ResultComparison) -> str:
    """The comparison in a few sentences."""
    slower, faster = (
        sorted({one.lane for one in comparison.differences if one.change == change}) for change in ("slower", "faster")
    )
    parts = []
    if comparison.missing:
        parts.append(f"{', '.join(comparison.missing)} missing in B, or without the golden answers there.")
    if slower:
        parts.append(f"{', '.join(slower)} became slower.")
    if faster:
        parts.append(f"{', '.join(faster)} became faster.")
    return " ".join(parts) or "No significant difference."


def write_comparison(comparison: ResultComparison, before: Result, after: Result, path: Path) -> Path:
    """Write the HTML; the file is complete or absent."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=select_autoescape(["html.j2"]),
    )
    plot = svg(lambda axes: _forest(axes, comparison), height=1.0 + 0.22 * len(comparison.differences))
    text = environment.get_template("comparison.html.j2").render(
        comparison=comparison, before=before, after=after, verdict=comparison_verdict(comparison), plot=plot
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
    return path


def _forest(axes: Axes, comparison: ResultComparison) -> None:
    differences = list(reversed(comparison.differences))
    for place, one in enumerate(differences):
        color = _COLORS[one.change]
        axes.plot([one.low, one.high], [place, place], color=color, linewidth=1.5)
        axes.plot([one.ratio], [place], "o", color=color, markersize=4)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(
        range(len(differences)), [f"{one.lane}, {one.load.label}: {one.metric}" for one in differences], fontsize=7
    )
    axes.set_xlabel("B / A, with the interval of the test")
