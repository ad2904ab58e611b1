"""The result in one or two sentences, for a person who reads nothing else."""

from loadtest.result import Result
from loadtest.summary import Headline, headlines, milliseconds


def verdict(result: Result) -> str:
    """Who answers a lone request fastest, who answers the most; and what must not be believed."""
    lines = [line for line in headlines(result) if line.parity != "FAILED"]
    parts = [_fastest(lines), _most(lines)]
    if result.faults:
        parts.append(f"{len(result.faults)} fault(s) make parts of this invalid; see Validity.")
    return " ".join(part for part in parts if part) or "No lane could be timed."


def _fastest(lines: list[Headline]) -> str:
    timed = [
        (line.single.p50_s, line.lane) for line in lines if line.single is not None and line.single.p50_s is not None
    ]
    if not timed:
        return ""
    timed.sort()
    rest = ", ".join(f"{lane} {milliseconds(p50)} ms" for p50, lane in timed[1:])
    return f"A lone request is answered by {timed[0][1]} in {milliseconds(timed[0][0])} ms (median){f'; {rest}' if rest else ''}."


def _most(lines: list[Headline]) -> str:
    peaks = sorted(((line.peak.requests_per_s, line.lane) for line in lines if line.peak is not None), reverse=True)
    if not peaks:
        return ""
    rest = ", ".join(f"{lane} {rate:.0f}" for rate, lane in peaks[1:])
    return f"Under load {peaks[0][1]} answers most: {peaks[0][0]:.0f} requests/s{f'; {rest}' if rest else ''}."
