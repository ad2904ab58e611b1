"""Shared by all plots: colours, style, and figures as SVG text."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK: Final = "#7a8490"
RED: Final = "#d64545"
_COLORS: Final = (
    "#3b82c4", "#e07b39", "#4aa564", "#a36bc2", "#c9a227", "#d05f7e", "#2aa5a0", "#8d6e63", "#7f8c2f", "#5c6bc0",
)  # fmt: skip
_STYLE: Final[Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "trident",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Palette:
    """A colour per lane."""

    lanes: Sequence[str]

    def color(self, lane: str) -> str:
        """The lane's colour, the same in every plot."""
        return _COLORS[self.lanes.index(lane) % len(_COLORS)]


def svg(draw: Callable[[Axes], None], height: float = 4.2) -> str:
    """Draw one plot."""
    return grid(1, 1, lambda all_axes: draw(all_axes[0][0]), height)


def grid(lines: int, columns: int, draw: Callable[[Sequence[Sequence[Axes]]], None], height: float) -> str:
    """Draw several plots in one figure."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, height), layout="constrained")
        draw(figure.subplots(lines, columns, squeeze=False).tolist())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def log_y(axes: Axes) -> None:
    """Set a logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else ""))


def plain(value: float, _: int | None = None) -> str:
    """Format a tick without powers of ten."""
    return f"{value:g}"


def legend(axes: Axes) -> None:
    """Add a small legend."""
    axes.legend(fontsize=8)
