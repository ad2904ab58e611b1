"""Render the templates with a result."""

from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from bundle.atomic_file import atomic_write
from loadtest.analysis.estimate import Estimate, mean_of
from loadtest.analysis.summary import headlines, load_summaries, milliseconds, with_interval
from loadtest.benchmark.result import Result
from loadtest.lanes.ceiling import CeilingSpec
from loadtest.report.plots import plots, timelines
from loadtest.report.tables import tables
from loadtest.report.verdict import verdict

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"


def write_report(result: Result, folder: Path) -> Path:
    """Write report.html, report.md and the plots into `folder`. Returns the path of the HTML."""
    drawn = plots(result)
    files = {plot.title: f"plot-{number}.svg" for number, plot in enumerate(drawn, 1)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=select_autoescape(["html.j2"]),
    )
    environment.filters["ms"] = milliseconds
    environment.filters["estimate"] = with_interval
    environment.filters["stacked"] = _stacked
    lines = headlines(result)
    content = {
        "result": result,
        "verdict": verdict(result),
        "headlines": lines,
        "slo": next((line.capacity for line in lines if line.capacity is not None and line.capacity.under_slo), None),
        "summaries": load_summaries(result),
        "tables": tables(result),
        "plots": drawn,
        "plot_files": files,
        "timelines": timelines(result),
        "serving_groups": _serving_groups(result),
        "ceilings": _ceilings(result),
        "longest_lag_ms": max((run.recording.generator.lag_p99_ms for run in result.valid_runs), default=0.0),
        "most_cpu": max((run.recording.generator.cpu for run in result.valid_runs), default=0.0),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for plot in drawn:
        atomic_write(folder / files[plot.title], plot.svg)
    atomic_write(folder / MARKDOWN, environment.get_template(f"{MARKDOWN}.j2").render(content))
    path = folder / HTML
    atomic_write(path, environment.get_template(f"{HTML}.j2").render(content))
    return path


def _stacked(value: Estimate | None, unit: float = 1.0) -> Markup:
    """A value with its interval below it, for narrow columns in HTML."""
    text, bracket, interval = with_interval(value, unit).partition(" (")
    return (
        Markup("{}<br><small>{}</small>").format(text, interval.rstrip(")")) if bracket else Markup("{}").format(text)
    )


def _serving_groups(result: Result) -> list[tuple[dict[str, Any], list[str]]]:
    """The different settings of the servers, each with its lanes."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for lane, serving in result.serving.items():
        if not serving:  # unknown settings: a third-party server
            continue
        known = next((lanes for settings, lanes in groups if settings == serving), None)
        if known is None:
            groups.append((serving, [lane]))
        else:
            known.append(lane)
    return groups


def _on_device(spec: CeilingSpec) -> str:
    return "" if spec.device == "cpu" else f" on {spec.device}, with {spec.decoders} decoder thread(s) each"


def _ceilings(result: Result) -> list[str]:
    """One sentence for each ceiling."""
    sentences = []
    for spec in dict.fromkeys(ceiling.spec for ceiling in result.ceilings):
        own = [ceiling for ceiling in result.ceilings if ceiling.spec == spec]
        single, batched = (mean_of([getattr(one, name) for one in own]) for name in ("single", "batched"))
        sentences.append(
            f"{spec.runtime}, {spec.precision}, {spec.workers} process(es) of {spec.threads} thread(s){_on_device(spec)}: "
            f"{with_interval(single)} images/s one by one, {with_interval(batched)} images/s in batches of {spec.max_batch_size}"
        )
    return sentences
