"""The report's plots, as SVG text. Transparent, in colours that can be read on white and on black."""

import io
from collections.abc import Callable
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from loadtest.result import Result
from loadtest.statistics import merged, min_samples
from loadtest.summary import Row, rows

_COLORS: Final = ("#3b82c4", "#e07b39", "#4aa564", "#a36bc2", "#c9a227", "#d05f7e")
_INK: Final = "#7a8490"
_STYLE: Final[Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "trident",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def plots(result: Result) -> dict[str, str]:
    """SVG by title; only those for which there is data."""
    drawn: dict[str, str] = {}
    table = rows(result)
    if len({row.concurrency for row in table}) > 1:
        drawn["Throughput and latency"] = _svg(lambda axes: _throughput_latency(axes, result, table))
    if any(row.concurrency == 1 for row in table):
        drawn["Latency of a lone request, by percentile"] = _svg(lambda axes: _by_percentile(axes, result))
    return drawn


def _throughput_latency(axes: Axes, result: Result, table: list[Row]) -> None:
    for color, lane in zip(_COLORS, result.lanes, strict=False):
        own = [row for row in table if row.lane == lane.name and row.p50_s is not None]
        for style, label, value in (("-o", lane.name, "p50_s"), ("--^", None, "p99_s")):
            points = [
                (row.requests_per_s, getattr(row, value) * 1000) for row in own if getattr(row, value) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=5)
        for row in own:
            axes.annotate(
                f"{row.concurrency}",
                (row.requests_per_s, (row.p50_s or 0) * 1000),
                textcoords="offset points",
                xytext=(4, -11),
                fontsize=8,
            )
    axes.plot([], [], "--^", color=_INK, markersize=5, label="p99 (lines without dashes: p50)")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("answered requests per second (numbers: requests under way at once)")
    axes.set_ylabel("latency, ms")
    axes.legend()


def _by_percentile(axes: Axes, result: Result) -> None:
    """The shape that HdrHistogram made usual: the x axis stretches towards 100 %."""
    reached = 0.0
    for color, lane in zip(_COLORS, result.lanes, strict=False):
        runs = [run.recording.latencies for run in result.runs if run.lane == lane.name and run.load.concurrency == 1]
        if not runs:
            continue
        histogram = merged(runs)
        ladder = [0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99]
        shown = [p for p in ladder if p == 0 or histogram.total_count >= min_samples(p)]
        reached = max(reached, *shown)
        values = [histogram.get_value_at_percentile(p) / 1e6 for p in shown]
        axes.plot([1 / (1 - p / 100) for p in shown], values, "-o", color=color, label=lane.name, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1 / (1 - p / 100) for p in (0, 50, 90, 95, 99, 99.9, 99.99) if p <= reached])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (1 - 1 / x):.6g} %"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("percentile of the requests")
    axes.set_ylabel("latency, ms")
    axes.legend()


def _svg(draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        draw(axes)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else ""))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
