"""The report's plots as SVG text: transparent, with colours that are legible on white and on black."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from loadtest.analysis.estimate import Estimate
from loadtest.analysis.summary import STAGES, LoadSummary, load_summaries
from loadtest.benchmark.result import Result, Run
from loadtest.histogram import merged, min_samples, percentile_ns
from loadtest.load import ClosedLoop, Load, OpenLoop
from loadtest.report.canvas import INK, RED, Palette, grid, legend, log_y, plain, svg
from loadtest.scenarios import Slo

_STAGE_COLORS = {
    "decode": "#4aa564",
    "queue": "#c9a227",
    "inference": "#3b82c4",
    "handler": "#3b82c4",
    "rest": "#a7b0b9",
}
_STAGE_NAMES = {"handler": "handler (decode and inference)", "rest": "rest: HTTP, framework, network, client"}


@dataclass(frozen=True)
class Plot:
    """A plot with its title, and a note on how to read it."""

    title: str
    note: str
    svg: str


def plots(result: Result) -> list[Plot]:
    """All plots for which there is data."""
    table = load_summaries(result)
    palette = Palette([lane.name for lane in result.lanes])
    closed = [row for row in table if isinstance(row.load.loop, ClosedLoop) and row.p50_s is not None]
    single = [row for row in closed if row.load.scenario == "single-stream"]
    drawn = []
    if len({row.load for row in closed}) > 1:
        drawn.append(
            Plot(
                "Throughput and latency",
                "Closed loop: each point is one concurrency. Right: higher throughput. Down: lower latency. Where a line turns "
                "upwards, the server is saturated. Bars: 95 % confidence over rounds.",
                svg(lambda axes: _throughput_latency(axes, closed, palette)),
            )
        )
    if single:
        drawn.append(
            Plot(
                "Latency at concurrency 1, by percentile",
                "The share of requests that are at least this fast. Lines end where there are too few requests for the "
                "percentile.",
                svg(lambda axes: _by_percentile(axes, result, palette)),
            )
        )
    if any(isinstance(run.load.loop, OpenLoop) and run.load.scenario in ("server", "slo") for run in result.valid_runs):
        drawn.append(
            Plot(
                "Latency by offered rate",
                "Open loop: requests are sent on a Poisson schedule; latency is measured from the scheduled time, so it "
                "includes the delay that a stalled server causes. Each point is one run.",
                svg(lambda axes: _against_rate(axes, result, palette)),
            )
        )
    staged = [row for row in single or closed[:1] if row.stages_s]
    if staged:
        drawn.append(
            Plot(
                "Where the time goes",
                "Mean latency at concurrency 1: the stages from the server's own counters, and the rest of the client's "
                "latency.",
                svg(lambda axes: _breakdown(axes, staged), height=1.2 + 0.5 * len(staged)),
            )
        )
    busiest = [row for row in _busiest(closed) if row.cpu_ms_per_request is not None]
    if busiest:
        drawn.append(
            Plot(
                "CPU and memory",
                "At the highest throughput: CPU time of the server's process tree per answered request, and its peak "
                "resident memory.",
                grid(
                    1,
                    2,
                    lambda all_axes: _cpu_and_memory(all_axes[0], busiest, palette),
                    height=1.2 + 0.42 * len(busiest),
                ),
            )
        )
    return drawn


def timelines(result: Result) -> list[Plot]:
    """The timelines of all runs: a row of small plots per lane, a plot per load, a curve per round."""
    palette = Palette([lane.name for lane in result.lanes])
    drawn = []
    for scenario in dict.fromkeys(run.load.scenario for run in result.runs):
        if scenario == "slo":
            continue  # the search has a table
        runs = [run for run in result.runs if run.load.scenario == scenario and not run.load.probe]
        loads = {lane: list(dict.fromkeys(run.load for run in runs if run.lane == lane)) for lane in palette.lanes}
        loads = {lane: own for lane, own in loads.items() if own}
        if loads:
            note = (
                "Solid: median per bin of time. Dots: the slowest request of the bin. One curve per round. Red: failed "
                "requests. Grey, dashed: an invalid run."
            )
            columns = max(len(own) for own in loads.values())
            draw = functools.partial(_timelines, runs=runs, loads=loads, palette=palette)
            drawn.append(Plot(scenario, note, grid(len(loads), columns, draw, height=0.3 + 1.15 * len(loads))))
    return drawn


def _timelines(
    all_axes: Sequence[Sequence[Axes]], runs: Sequence[Run], loads: dict[str, list[Load]], palette: Palette
) -> None:
    for line, (lane, own) in zip(all_axes, loads.items(), strict=True):
        for column, axes in enumerate(line):
            if column < len(own):
                shown = [run for run in runs if (run.lane, run.load) == (lane, own[column])]
                _timeline(axes, shown, palette.color(lane), own[column].loop.label)
            else:
                axes.set_axis_off()
        line[0].set_ylabel(lane.replace(" ", "\n"), fontsize=8)


def _busiest(closed: Sequence[LoadSummary]) -> list[LoadSummary]:
    best: dict[str, LoadSummary] = {}
    for row in closed:
        if row.lane not in best or row.requests_per_s.value > best[row.lane].requests_per_s.value:
            best[row.lane] = row
    return list(best.values())


def _throughput_latency(axes: Axes, closed: Sequence[LoadSummary], palette: Palette) -> None:
    for lane in palette.lanes:
        own = sorted(
            (row for row in closed if row.lane == lane), key=lambda row: getattr(row.load.loop, "concurrency", 0)
        )
        for p99 in (False, True):
            points = [(row, row.p99_s if p99 else row.p50_s) for row in own]
            shown = [(row.requests_per_s, value) for row, value in points if value is not None]
            if not shown:
                continue
            xs, ys = [x.value for x, _ in shown], [y.value * 1000 for _, y in shown]
            label = None if p99 else lane
            axes.plot(xs, ys, "--^" if p99 else "-o", color=palette.color(lane), markersize=4, label=label)
            errors = [_error_bar(y, 1000) for _, y in shown], [_error_bar(x, 1) for x, _ in shown]
            axes.errorbar(
                xs, ys, yerr=list(zip(*errors[0], strict=True)), xerr=list(zip(*errors[1], strict=True)),
                fmt="none", ecolor=palette.color(lane), alpha=0.5, elinewidth=1,
            )  # fmt: skip
        for row in own:
            assert row.p50_s is not None
            place = (row.requests_per_s.value, row.p50_s.value * 1000)
            label = f"{getattr(row.load.loop, 'concurrency', '')}"
            axes.annotate(label, place, textcoords="offset points", xytext=(4, -11), fontsize=8)
    axes.plot([], [], "--^", color=INK, markersize=4, label="p99 (solid lines: p50)")
    log_y(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("answered requests per second (numbers: concurrency)")
    axes.set_ylabel("latency, ms")
    legend(axes)


def _error_bar(estimate: Estimate, unit: float) -> tuple[float, float]:
    interval = estimate.interval
    if interval is None:
        return 0.0, 0.0
    return max(0.0, estimate.value - interval.low) * unit, max(0.0, interval.high - estimate.value) * unit


def _by_percentile(axes: Axes, result: Result, palette: Palette) -> None:
    """HdrHistogram's usual plot: the x axis is stretched towards 100 %."""
    reached = 0.0
    ladder = [0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99]
    for lane in palette.lanes:
        runs = [
            run.recording.latencies
            for run in result.valid_runs
            if run.lane == lane and run.load.scenario == "single-stream"
        ]
        if not runs:
            continue
        histogram = merged(runs)
        shown = [p for p in ladder if p == 0 or histogram.total_count >= min_samples(p)]
        reached = max(reached, *shown)
        values = [percentile_ns(histogram, p) / 1e6 for p in shown]
        axes.plot([1 / (1 - p / 100) for p in shown], values, "-o", color=palette.color(lane), label=lane, markersize=4)
    axes.set_xscale("log")
    log_y(axes)
    axes.set_xticks([1 / (1 - p / 100) for p in (0, 50, 90, 95, 99, 99.9, 99.99) if p <= reached])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (1 - 1 / x):.6g} %"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("percentile of the requests")
    axes.set_ylabel("latency, ms")
    legend(axes)


def _against_rate(axes: Axes, result: Result, palette: Palette) -> None:
    for lane in palette.lanes:
        runs = [
            run
            for run in result.valid_runs
            if run.lane == lane and isinstance(run.load.loop, OpenLoop) and run.load.scenario in ("server", "slo")
        ]
        runs = sorted((run for run in runs if run.recording.answered), key=lambda run: run.recording.offered_per_s)
        rates = [run.recording.offered_per_s for run in runs]
        color = palette.color(lane)
        if not runs:
            continue
        axes.plot(rates, [run.recording.percentile_ms(50) for run in runs], "o", color=color, markersize=4, label=lane)
        enough = [run for run in runs if run.recording.answered >= min_samples(99)]
        p99 = [run.recording.percentile_ms(99) for run in enough]
        axes.plot([run.recording.offered_per_s for run in enough], p99, "^", color=color, markersize=4, alpha=0.6)
    slo = next((one for one in result.settings.scenarios if isinstance(one, Slo)), None)
    if slo is not None:
        axes.axhline(slo.slo_ms, color=RED, linewidth=1, linestyle="--")
        axes.annotate(
            f"objective: p{slo.percentile:g} within {slo.slo_ms:g} ms", (0.01, slo.slo_ms),
            xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", fontsize=8, color=RED,
        )  # fmt: skip
    axes.plot([], [], "^", color=INK, markersize=4, label="p99 (dots: p50)")
    log_y(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("offered requests per second")
    axes.set_ylabel("latency from the scheduled time, ms")
    legend(axes)


def _breakdown(axes: Axes, staged: Sequence[LoadSummary]) -> None:
    for place, row in enumerate(reversed(staged)):
        left = 0.0
        for stage in (*STAGES, "rest"):
            width = (row.rest_s if stage == "rest" else row.stages_s.get(stage, 0.0)) * 1000
            if width > 0:
                axes.barh(place, width, left=left, color=_STAGE_COLORS[stage], height=0.6)
                if width > 0.06 * row.mean_s * 1000:
                    axes.text(
                        left + width / 2, place, f"{width:.2g}", ha="center", va="center", fontsize=8, color="white"
                    )
                left += width
    axes.set_yticks(range(len(staged)), [row.lane for row in reversed(staged)])
    axes.set_xlabel("ms")
    axes.grid(visible=False, axis="y")
    seen = [stage for stage in (*STAGES, "rest") if stage == "rest" or any(stage in row.stages_s for row in staged)]
    for stage in seen:
        axes.barh(0, 0, color=_STAGE_COLORS[stage], label=_STAGE_NAMES.get(stage, stage))
    axes.set_ylim(-0.6, len(staged) + 0.2)  # room for the legend
    axes.legend(loc="upper center", ncols=len(seen), fontsize=8)


def _cpu_and_memory(all_axes: Sequence[Axes], busiest: Sequence[LoadSummary], palette: Palette) -> None:
    cpu, memory = all_axes
    names = [row.lane for row in reversed(busiest)]
    colors = [palette.color(name) for name in names]
    cpu.barh(names, [row.cpu_ms_per_request or 0.0 for row in reversed(busiest)], color=colors, height=0.6)
    cpu.set_xlabel("CPU ms per request")
    memory.barh(names, [row.memory_mib or 0.0 for row in reversed(busiest)], color=colors, height=0.6)
    memory.set_xlabel("memory, MiB")
    memory.set_yticks([])
    for axes in all_axes:
        axes.grid(visible=False, axis="y")
        for container in axes.containers:
            axes.bar_label(container, fmt="%.3g", fontsize=8, color=INK, padding=2)  # type: ignore[arg-type]
        axes.margins(x=0.15)


def _timeline(axes: Axes, runs: Sequence[Run], color: str, title: str) -> None:
    for run in runs:
        line = run.recording.timeline
        at = [(index + 0.5) * line.bin_s for index in range(len(line.p50_ms))]
        shown = [(x, p50, most) for x, p50, most in zip(at, line.p50_ms, line.max_ms, strict=True) if p50 is not None]
        ink, style = (INK, "--") if run.invalid_reason is not None else (color, "-")
        if shown:
            xs, p50s, mosts = zip(*shown, strict=True)
            axes.plot(xs, p50s, style, color=ink, linewidth=1)
            axes.plot(xs, mosts, ".", color=ink, markersize=2, alpha=0.5)
        failed = [x for x, count in zip(at, line.failed, strict=True) if count]
        axes.plot(failed, [1.0] * len(failed), "|", color=RED, markersize=6, transform=axes.get_xaxis_transform())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8, color=INK)
