"""The figures of the contestants as tables: medians over the rounds, lowest and highest."""

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtest.generator.recording import Recording
from loadtest.overhead.contestants import TRIDENT
from loadtest.overhead.turns import GENERATOR, Turns


def show_turns(console: Console, done: Turns, names: Sequence[str], tools: Sequence[str]) -> None:
    """One table per concurrency, with the columns of every tool."""
    for concurrency in dict.fromkeys(turn.concurrency for turn in done.turns):
        console.print(f"\nconcurrency {concurrency}", highlight=False)
        console.print(_table(done, names, tools, concurrency))
        for tool in tools:
            console.print(_against_best_peer(done, names, tool, concurrency) or "", end="", highlight=False)
    for reason in done.invalid():
        console.print(f"INVALID and excluded: {reason}", style="red", highlight=False)


def show_constant_rate(console: Console, recording: Recording, share: float) -> None:
    """Latency of our service at a share of its highest rate."""
    reason = recording.invalid_reason(open_loop=True)
    if reason is not None:
        console.print(f"INVALID: {TRIDENT} at a constant rate: {reason}", style="red", highlight=False)
        return
    p50, p99 = recording.percentile_ms(50), recording.percentile_ms(99)
    console.print(
        f"{TRIDENT} at {share:.0%} of its highest rate ({recording.offered_per_s:.0f} requests/s, constant): p50 {p50:.2f} ms, "
        f"p99 {p99:.2f} ms, p99/p50 {p99 / p50:.2f}",
        highlight=False,
    )


def _table(done: Turns, names: Sequence[str], tools: Sequence[str], concurrency: int) -> Table:
    table = Table("server", box=None, header_style="dim")
    for tool in tools:
        for column in ("p50 ms", "requests/s", "of ceiling", "lowest, highest"):
            table.add_column(f"{tool}: {column}" if column == "p50 ms" else column, justify="right")
    for name in names:
        table.add_row(name, *(cell for tool in tools for cell in _cells(done, name, concurrency, tool)))
    return table


def _cells(done: Turns, name: str, concurrency: int, tool: str) -> list[str]:
    turns = done.of(name, concurrency, tool)
    if not turns:
        return ["-"] * 4
    shares = [turn.share for turn in turns]
    return [
        f"{median(turn.figures.p50_s for turn in turns) * 1000:.2f}",
        f"{median(turn.figures.requests_per_s for turn in turns):.0f}",
        f"{median(shares):.2f}",
        f"{min(shares):.2f}, {max(shares):.2f}",
    ]


def _against_best_peer(done: Turns, names: Sequence[str], tool: str, concurrency: int) -> str | None:
    shares = {
        name: median(turn.share for turn in turns) for name in names if (turns := done.of(name, concurrency, tool))
    }
    ours = shares.pop(TRIDENT, None)
    if ours is None or not shares:
        return None
    best = max(shares, key=lambda name: shares[name])
    tool = f" ({tool})" if tool != GENERATOR else ""
    return f"{TRIDENT} reaches {ours / shares[best]:.2f} times the share of the best peer, {best}{tool}\n"
