"""What was measured, as paragraphs and tables: for the terminal, or as Markdown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from loadtest.generator.recording import Recording
from loadtest.overhead.contestants import TRIDENT
from loadtest.overhead.turns import GENERATOR, Turns

_WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A table. The first `names` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 2


Block = str | Table


def show(console: Console, blocks: Sequence[Block]) -> None:
    """Print paragraphs and tables."""
    for block in blocks:
        if isinstance(block, str):
            console.print(block, highlight=False, markup=False)
            continue
        console.print(f"\n{block.title}", highlight=False, markup=False)
        table = RichTable(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        for number, column in enumerate(block.columns):
            table.add_column(column, justify="left" if number < block.names else "right", overflow="fold")
        for row in block.rows:
            table.add_row(*row)
        console.print(table)


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """A page of paragraphs and tables. A paragraph that starts with a command is not wrapped."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, str):
            command = block.startswith("`")
            parts.append(
                block if command else textwrap.fill(block, _WIDTH, break_long_words=False, break_on_hyphens=False)
            )
            continue
        rules = ["---"] * block.names + ["---:"] * (len(block.columns) - block.names)
        rows = [f"| {' | '.join(row)} |" for row in (block.columns, tuple(rules), *block.rows)]
        parts += [f"## {block.title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def comparison_tables(done: Turns, names: Sequence[str], tools: Sequence[str]) -> list[Block]:
    """One table per concurrency with the columns of every tool, and Trident's share against the best peer's."""
    blocks: list[Block] = []
    for concurrency in sorted({turn.concurrency for turn in done.turns}):
        blocks.append(_table(done, names, tools, concurrency))
        blocks += [text for tool in tools if (text := _against_best_peer(done, names, tool, concurrency))]
    return blocks + [f"INVALID and excluded: {reason}" for reason in done.invalid()]


def constant_rate(recording: Recording, share: float) -> str:
    """Latency of our service at a share of its highest rate."""
    reason = recording.invalid_reason(open_loop=True)
    if reason is not None:
        return f"INVALID: {TRIDENT} at a constant rate: {reason}"
    p50, p99 = recording.percentile_ms(50), recording.percentile_ms(99)
    return (
        f"{TRIDENT} at {share:.0%} of its highest rate ({recording.offered_per_s:.0f} requests/s, constant): "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, p99/p50 {p99 / p50:.2f}."
    )


def _table(done: Turns, names: Sequence[str], tools: Sequence[str], concurrency: int) -> Table:
    columns = ["server", "settings"]
    for tool in tools:
        columns += [f"{tool}: p50 ms", "p99 ms", "requests/s", "of ceiling", "lowest, highest"]
    rows = [
        (
            name,
            _label(done, name, concurrency),
            *(cell for tool in tools for cell in _cells(done, name, concurrency, tool)),
        )
        for name in names
    ]
    return Table(f"Concurrency {concurrency}", tuple(columns), tuple(rows))


def _label(done: Turns, name: str, concurrency: int) -> str:
    labels = [turn.label for turn in done.turns if (turn.contestant, turn.concurrency) == (name, concurrency)]
    return labels[0] if labels else "-"


def _cells(done: Turns, name: str, concurrency: int, tool: str) -> list[str]:
    turns = done.of(name, concurrency, tool)
    if not turns:
        return ["-"] * 5
    shares = [turn.share for turn in turns]
    return [
        f"{median(turn.figures.p50_s for turn in turns) * 1000:.2f}",
        f"{median(turn.figures.p99_s for turn in turns) * 1000:.2f}",
        f"{median(turn.figures.requests_per_s for turn in turns):.0f}",
        f"{median(shares):.2f}",
        f"{min(shares):.2f}, {max(shares):.2f}",
    ]


def _against_best_peer(done: Turns, names: Sequence[str], tool: str, concurrency: int) -> str | None:
    """The ratio of the shares, round by round: median, lowest, highest."""
    shares = {
        name: {turn.round: turn.share for turn in turns}
        for name in names
        if (turns := done.of(name, concurrency, tool))
    }
    ours = shares.pop(TRIDENT, None)
    if ours is None or not shares:
        return None
    best = max(shares, key=lambda name: median(shares[name].values()))
    ratios = [ours[number] / share for number, share in shares[best].items() if number in ours]
    if not ratios:
        return None
    by = f" ({tool})" if tool != GENERATOR else ""
    spread = f"; lowest {min(ratios):.2f}, highest {max(ratios):.2f} of {len(ratios)} rounds" if len(ratios) > 1 else ""
    return f"{TRIDENT} reaches {median(ratios):.2f} times the share of the best peer, {best}{by}{spread}."
