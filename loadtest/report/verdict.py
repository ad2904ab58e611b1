"""The result in a few sentences, for a person who reads nothing else."""

from collections.abc import Sequence

from loadtest.result import Result
from loadtest.statistics import LEAST_ROUNDS, Estimate
from loadtest.summary import Headline, headlines, milliseconds

_MOST_NAMED = 5


def verdict(result: Result) -> str:
    """Who answers a lone request fastest, who answers the most; what is a tie; and what must not be believed."""
    lines = [line for line in headlines(result) if line.parity != "FAILED"]
    parts = [_fastest(lines), _most(lines), _tax(lines)]
    said = [part for part in parts if part]
    if said and len(lines) > 1 and result.settings.rounds < LEAST_ROUNDS:
        said.append(f"{result.settings.rounds} round(s) are too few to tell a difference from noise.")
    refused = sum(1 for lane in result.lanes if lane.faults)
    if refused:
        said.append(f"{refused} lane(s) gave wrong answers and were not timed.")
    invalid = sum(1 for run in result.runs if run.fault and not run.repeated)
    if invalid:
        said.append(f"{invalid} of {len(result.runs)} runs are invalid and left out; see Validity.")
    return " ".join(said) or "No lane could be timed."


def _fastest(lines: Sequence[Headline]) -> str:
    timed = [(line.lane, line.single.p50_s) for line in lines if line.single is not None]
    found = sorted(((p50, lane) for lane, p50 in timed if p50 is not None), key=lambda pair: pair[0].value)
    if not found:
        return ""
    first, tied, rest = _ranked(found)
    if tied:
        return f"A lone request is answered fastest by {_list([first, *tied], ' ms')} (median): a tie{_others(rest, ' ms')}."
    return f"A lone request is answered by {first[1]} in {first[0]} ms (median){_others(rest, ' ms')}."


def _most(lines: Sequence[Headline]) -> str:
    capacities = [(line.capacity, line.lane) for line in lines if line.capacity is not None]
    if not capacities:
        return ""
    under_slo = any(capacity.under_slo for capacity, _ in capacities)
    chosen = [(capacity, lane) for capacity, lane in capacities if capacity.under_slo == under_slo]
    found = sorted(((one.requests_per_s, lane) for one, lane in chosen), key=lambda pair: -pair[0].value)
    first, tied, rest = _ranked(found, as_rate=True)
    condition = f" with {chosen[0][0].condition}" if under_slo else ""
    more = [lane for one, lane in chosen if one.at_least]
    bound = f" More could not be measured of {' and '.join(_few(more))}." if more else ""
    if tied:
        return f"Under load{condition}, {_list([first, *tied], '')} requests/s are a tie for the most{_others(rest, '')}.{bound}"
    return f"Under load{condition}, {first[1]} answers most: {first[0]} requests/s{_others(rest, '')}.{bound}"


def _tax(lines: Sequence[Headline]) -> str:
    found = [(line.of_ceiling, line.lane) for line in lines if line.of_ceiling is not None]
    if not found:
        return ""
    shares = [f"{lane} {share.value:.0%}" for share, lane in sorted(found, key=lambda pair: -pair[0].value)]
    return f"Of what decoding and model alone do in a plain loop on the same cores, that is: {', '.join(_few(shares))}."


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
    return "".join(f"; {said}" for said in _few([f"{lane} {number}{unit}" for number, lane in pairs]))


def _few(said: list[str]) -> list[str]:
    """A sentence has room for some: the first ones, and the last."""
    return said if len(said) <= _MOST_NAMED else [*said[: _MOST_NAMED - 2], "…", said[-1]]
