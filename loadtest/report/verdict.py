"""The verdict: the result in a few sentences."""

from collections.abc import Sequence

from loadtest.analysis.estimate import LEAST_ROUNDS, Estimate
from loadtest.analysis.summary import Headline, headlines, milliseconds
from loadtest.benchmark.result import Result

_MOST_NAMED = 5


def verdict(result: Result) -> str:
    """The lowest latency, the highest throughput and the share of the ceiling, with ties; then what is missing or invalid."""
    lines = [line for line in headlines(result) if line.parity != "FAILED"]
    sentences = [part for part in (_latency(lines), _throughput(lines), _share_of_ceiling(lines)) if part is not None]
    if sentences and len(lines) > 1 and result.settings.rounds < LEAST_ROUNDS:
        sentences.append(f"{result.settings.rounds} round(s) are too few to distinguish a difference from noise.")
    failed = sum(1 for parity in result.lanes if parity.faults)
    if failed:
        sentences.append(f"{failed} lane(s) gave wrong answers and were not timed.")
    invalid = sum(1 for run in result.runs if run.invalid_reason is not None and not run.repeated)
    if invalid:
        sentences.append(f"{invalid} of {len(result.runs)} runs are invalid and excluded; see Validity.")
    return " ".join(sentences) or "No lane could be timed."


def _latency(lines: Sequence[Headline]) -> str | None:
    timed = [(line.lane, line.single.p50_s) for line in lines if line.single is not None]
    found = sorted(((p50, lane) for lane, p50 in timed if p50 is not None), key=lambda pair: pair[0].value)
    if not found:
        return None
    first, tied, rest = _ranked(found)
    best = f"a tie of {_list([first, *tied], ' ms')}" if tied else f"{first[1]} {first[0]} ms"
    return f"Lowest median latency at concurrency 1: {best}{_others(rest, ' ms')}."


def _throughput(lines: Sequence[Headline]) -> str | None:
    capacities = [(line.capacity, line.lane) for line in lines if line.capacity is not None]
    if not capacities:
        return None
    under_slo = any(capacity.under_slo for capacity, _ in capacities)
    chosen = [(capacity, lane) for capacity, lane in capacities if capacity.under_slo == under_slo]
    found = sorted(((one.requests_per_s, lane) for one, lane in chosen), key=lambda pair: -pair[0].value)
    first, tied, rest = _ranked(found, as_rate=True)
    condition = f" with {chosen[0][0].condition}" if under_slo else ""
    bounded = [lane for capacity, lane in chosen if capacity.at_least]
    more = f" Higher rates could not be measured for {' and '.join(_few(bounded))}." if bounded else ""
    best = f"a tie of {_list([first, *tied], ' requests/s')}" if tied else f"{first[1]} {first[0]} requests/s"
    return f"Highest throughput{condition}: {best}{_others(rest, ' requests/s')}.{more}"


def _share_of_ceiling(lines: Sequence[Headline]) -> str | None:
    found = [(line.of_ceiling, line.lane) for line in lines if line.of_ceiling is not None]
    if not found:
        return None
    shares = [f"{lane} {share.value:.0%}" for share, lane in sorted(found, key=lambda pair: -pair[0].value)]
    return f"Share of the ceiling (decode and model in a loop on the same cores): {', '.join(_few(shares))}."


def _ranked(
    found: Sequence[tuple[Estimate, str]], *, as_rate: bool = False
) -> tuple[tuple[str, str], list[tuple[str, str]], list[tuple[str, str]]]:
    """The first, those that tie with it, and the rest; each as number and lane."""
    shown = [(f"{value.value:.0f}" if as_rate else milliseconds(value), lane) for value, lane in found]
    best = found[0][0]
    ties = [best.interval is not None and value.ties(best) for value, _ in found[1:]]
    tied = [pair for pair, tie in zip(shown[1:], ties, strict=True) if tie]
    rest = [pair for pair, tie in zip(shown[1:], ties, strict=True) if not tie]
    return shown[0], tied, rest


def _list(pairs: Sequence[tuple[str, str]], unit: str) -> str:
    return " and ".join(f"{lane} ({number}{unit})" for number, lane in pairs)


def _others(pairs: Sequence[tuple[str, str]], unit: str) -> str:
    return "".join(f"; {text}" for text in _few([f"{lane} {number}{unit}" for number, lane in pairs]))


def _few(texts: list[str]) -> list[str]:
    """Shorten a long list to its first entries and the last one."""
    return texts if len(texts) <= _MOST_NAMED else [*texts[: _MOST_NAMED - 2], "…", texts[-1]]
