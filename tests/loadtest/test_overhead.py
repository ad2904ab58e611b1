"""The comparison with peers: contestants, settings, turns, figures; with small servers instead of the peers."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from PIL import Image
from rich.console import Console

from bundle.jpeg import DECODER_VARIABLE
from bundle.store import Bundle
from loadtest.errors import GeneratorError, LoadtestError
from loadtest.generator.client import Generator
from loadtest.generator.wrk import ToolFigures, wrk_is_installed
from loadtest.lanes.ceiling import CeilingRates
from loadtest.lanes.lane import Lane
from loadtest.overhead import __main__ as command
from loadtest.overhead.choosing import best_settings
from loadtest.overhead.contestants import Contestant, contestants, settings_of
from loadtest.overhead.images import with_jpeg_images
from loadtest.overhead.running import RunningContestant, running
from loadtest.overhead.table import Table, as_markdown, comparison_tables, show
from loadtest.overhead.turns import (
    GENERATOR,
    WRK,
    Entrant,
    Turn,
    Turns,
    at_constant_rate,
    generator_tool,
    take_turns,
    wrk_tool,
)
from tests.loadtest.lab import lane

CORE = min(os.sched_getaffinity(0))
LOAD_CORE = max(os.sched_getaffinity(0))
CEILING = CeilingRates(single=1000, batched=2000)
PEERS = ["mosec", "LitServe", "BentoML"]


def small(name: str, bundle: Bundle, *flaw: str, label: str = "-", adapts: bool = False) -> Contestant:
    """A small server as a contestant."""
    command = [sys.executable, "-m", "tests.loadtest.small_server", str(bundle.path)]
    here = lane(name, dialect="image", path="/predict", server=name)
    return Contestant(name, lambda port: [*command, str(port), *flaw], here, label=label, adapts=adapts)


def figures(requests_per_s: float, invalid_reason: str | None = None) -> ToolFigures:
    return ToolFigures(0.001, 0.002, requests_per_s, invalid_reason=invalid_reason)


def is_paused(server: RunningContestant) -> bool:
    return psutil.Process(server.process.pid).status() == psutil.STATUS_STOPPED


class FakeServer:
    """A running contestant without a process; its lane's address is its label."""

    def __init__(self, contestant: Contestant) -> None:
        self.lane = contestant.lane.model_copy(update={"url": contestant.label})

    @contextmanager
    def resumed(self) -> Iterator[None]:
        yield


class FakeStart:
    """Starts fake servers, and notes which are running."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: list[str] = []

    @contextmanager
    def __call__(self, contestant: Contestant) -> Iterator[Any]:
        self.started.append(contestant.label)
        self.running.append(contestant.label)
        yield FakeServer(contestant)
        self.running.remove(contestant.label)


def variants(*labels: str, adapts: bool = False) -> list[Contestant]:
    here = lane("mosec", dialect="image", path="/predict")
    return [Contestant("mosec", lambda _: [], here, label=label, adapts=adapts) for label in labels]


def test_every_server_takes_part_with_every_setting(digits: Bundle) -> None:
    every = contestants(digits, Path("python"))
    assert list(every) == ["trident", "plain FastAPI", *PEERS]
    assert list(contestants(digits, None)) == ["trident", "plain FastAPI"]
    assert list(contestants(digits, Path("python"), ["mosec"])) == ["mosec"]
    with pytest.raises(LoadtestError, match="no server mosec; known: trident, plain FastAPI"):
        contestants(digits, None, ["mosec"])
    labels = [one.label for one in every["mosec"]]
    assert labels == ["batch 1", *(f"batch {size}, {wait} ms" for size in (8, 16, 32) for wait in (1, 10))]
    assert [one.label for one in every["BentoML"]] == ["batch 1", "batch 8", "batch 16", "batch 32"]
    assert [one.adapts for one in every["BentoML"]] == [False, True, True, True]
    assert [one.label for one in every["plain FastAPI"]] == ["-"]
    for one in (one for some in every.values() for one in some):
        assert "1234" in [*one.command(1234), *one.environment(1234).values()]
        assert one.lane.wire(digits.manifest).request(b"image").body == b"image"


def test_settings_reach_the_servers(digits: Bundle) -> None:
    some = contestants(digits, Path("python"), ["trident", "mosec"], (16,), workers=2)
    ours, theirs = (some[name][-1].environment(1) for name in ("trident", "mosec"))
    assert (ours["TRIDENT_MAX_BATCH_SIZE"], ours["TRIDENT_QUEUE_DELAY_MS"], ours["TRIDENT_WORKERS"]) == ("16", "1", "2")
    assert (theirs["OVERHEAD_MAX_BATCH_SIZE"], theirs["OVERHEAD_DELAY_MS"]) == ("16", "10")
    assert theirs["OVERHEAD_WORKERS"] == "2"
    assert [one.delay_ms for one in settings_of("LitServe", (1, 8), first_delay_only=True)] == [None, 1]


def test_the_best_settings_are_chosen_for_each_concurrency() -> None:
    rates = {("a", 1): 100.0, ("b", 1): 90, ("c", 1): 10, ("a", 16): 100, ("b", 16): 800, ("c", 16): 700}
    measured: list[tuple[str, int]] = []

    def tool(lane: Lane, concurrency: int) -> ToolFigures:
        measured.append((lane.url, concurrency))
        return figures(rates[lane.url, concurrency])

    start, steps = FakeStart(), []
    with best_settings(
        variants("a", "b", "c"), (1, 16), start, tool, 2, seed=0, on_step=lambda *step: steps.append(step)
    ) as chosen:
        assert [(one.name, one.concurrency, one.label) for one in chosen] == [("mosec", 1, "a"), ("mosec", 16, "b")]
        assert start.running == ["a", "b"]
    assert start.running == []
    # The second round leaves out what is far behind.
    assert sorted(measured) == sorted([*rates, ("a", 1), ("b", 1), ("b", 16), ("c", 16)])
    assert [kind for kind, _, _ in steps].count("start") == 3
    assert sum(count for kind, _, count in steps if kind != "start") == 12


def test_an_adapting_server_starts_anew_for_each_concurrency() -> None:
    start = FakeStart()
    with best_settings(
        variants("a", "b", adapts=True), (1, 16), start, lambda lane, c: figures(c if lane.url == "b" else 5), 1, seed=0
    ) as chosen:
        assert [(one.concurrency, one.label) for one in chosen] == [(1, "a"), (16, "b")]
        assert start.started == ["a", "b", "a", "b"]
        assert start.running == ["a", "b"]


def test_settings_with_failures_are_not_chosen() -> None:
    def tool(lane: Lane, concurrency: int) -> ToolFigures:
        if lane.url == "a":
            raise LoadtestError("a request failed")
        return ToolFigures(0.1, 0.1, 900 if lane.url == "b" else 100, failed=lane.url == "b")

    with best_settings(variants("a", "b", "c"), [1], FakeStart(), tool, 1, seed=0) as chosen:
        assert [one.label for one in chosen] == ["c"]
    with (
        pytest.raises(LoadtestError, match="mosec at concurrency 1: no settings without failures"),
        best_settings(variants("a", "b"), [1], FakeStart(), tool, 1, seed=0),
    ):
        pass


def test_only_the_measured_server_runs_and_each_has_its_turn(digits: Bundle) -> None:
    measured: list[tuple[str, int]] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(small("one", digits), digits, [CORE])),
            stack.enter_context(running(small("two", digits, "slow-start"), digits, [CORE])),
        ]
        assert all(is_paused(server) for server in servers)
        assert all(psutil.Process(server.process.pid).cpu_affinity() == [CORE] for server in servers)

        def tool(lane: Lane, concurrency: int) -> ToolFigures:
            assert [server.lane.name for server in servers if not is_paused(server)] == [lane.name]
            measured.append((lane.name, concurrency))
            return figures(500)

        ceilings = iter(CeilingRates(single, 0) for single in range(1000, 10_000, 1000))
        entrants = [Entrant(server.lane.name, at, "batch 8", server) for server in servers for at in (1, 4)]
        done = take_turns(entrants, {GENERATOR: tool}, lambda: next(ceilings), 2, seed=0)
        with Generator() as generator:
            real = generator_tool(generator, digits, 0.3, [LOAD_CORE])
            with servers[0].resumed():
                found = real(servers[0].lane, 2)
            paced = at_constant_rate(servers[0], generator, digits, 50, 1, [LOAD_CORE])
        assert all(is_paused(server) for server in servers)
    assert sorted(measured) == sorted([("one", 1), ("one", 4), ("two", 1), ("two", 4)] * 2)
    assert [turn.ceiling for turn in done.turns] == [1500 + 1000 * number for number in range(8)]
    assert done.turns[0].share == pytest.approx(500 / 1500)
    assert [(turn.label, turn.round) for turn in done.of("one", 4, GENERATOR)] == [("batch 8", 0), ("batch 8", 1)]
    assert found.requests_per_s > 50
    assert 0 < found.p50_s <= found.p99_s
    assert paced.offered_per_s == pytest.approx(50, rel=0.1)
    assert not any(psutil.pid_exists(server.process.pid) for server in servers)


def test_a_server_with_wrong_answers_or_that_ends_does_not_take_part(digits: Bundle) -> None:
    with (
        pytest.raises(LoadtestError, match="one did not start: golden/"),
        running(small("one", digits, "wrong-answers"), digits, [CORE], timeout_s=3),
    ):
        pass
    ends = Contestant("two", lambda _: [sys.executable, "-c", "raise SystemExit('no model')"], lane("fastapi"))
    with pytest.raises(LoadtestError, match="code 1\nno model"), running(ends, digits, [CORE]):
        pass


def test_turns_with_failed_requests_are_excluded() -> None:
    entrant: Any = Entrant("mosec", 1, "batch 1", FakeServer(variants("a")[0]))  # type: ignore[arg-type]

    def breaks(*_: object) -> ToolFigures:
        raise LoadtestError("wrong answer")

    def ends(*_: object) -> ToolFigures:
        raise GeneratorError("the load generator ended")

    tools = {WRK: lambda *_: ToolFigures(0.1, 0.1, 10, failed=3), GENERATOR: breaks}
    done = take_turns([entrant], tools, lambda: CEILING, 1, seed=0)
    assert done.of("mosec", 1, WRK) == done.of("mosec", 1, GENERATOR) == []
    reasons = ["by wrk: 3 requests failed", "by generator: wrong answer"]
    assert done.invalid() == [f"mosec at concurrency 1, {reason}" for reason in reasons]
    silent = take_turns([entrant], {WRK: lambda *_: figures(0)}, lambda: CEILING, 1, seed=0)
    assert silent.invalid() == ["mosec at concurrency 1, by wrk: no request was answered"]
    with pytest.raises(GeneratorError):
        take_turns([entrant], {GENERATOR: ends}, lambda: CEILING, 1, seed=0)


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed (apt install wrk)")
def test_wrk_sends_the_golden_images(digits: Bundle) -> None:
    with running(small("one", digits), digits, [CORE]) as server, server.resumed():
        found = wrk_tool(digits, 1, [LOAD_CORE])(server.lane, 2)
    assert found.requests_per_s > 50
    assert found.failed == 0


def test_the_tables_have_medians_ranges_settings_and_the_best_peer() -> None:
    turns = [
        Turn(name, 16, tool, figures(rate * factor), 1000, "batch 8, 1 ms" if name == "mosec" else "batch 8", round_)
        for name, rate in (("trident", 800), ("mosec", 400), ("LitServe", 200))
        for tool in (GENERATOR, WRK)
        for round_, factor in enumerate((0.9, 1.0, 1.2))
    ]
    turns[0] = Turn("trident", 16, GENERATOR, figures(900), 1000, "batch 8", 0)
    distorted = Turn("LitServe", 16, GENERATOR, figures(5000, "the generator was saturated"), 1000)
    output = StringIO()
    names, tools = ["trident", "mosec", "LitServe"], [GENERATOR, WRK]
    blocks = comparison_tables(Turns([*turns, distorted], [CEILING]), names, tools)
    show(Console(file=output, width=160), blocks)
    lines = output.getvalue().splitlines()
    (theirs,) = [line for line in lines if line.lstrip().startswith("mosec ")]
    assert theirs.split()[1:] == ["batch", "8,", "1", "ms", *(["1.00", "2.00", "400", "0.40", "0.36,", "0.48"] * 2)]
    best = "the share of the best peer, mosec"
    assert f"trident reaches 2.00 times {best}; lowest 2.00, highest 2.50 of 3 rounds." in lines
    assert f"trident reaches 2.00 times {best} (wrk); lowest 2.00, highest 2.00 of 3 rounds." in lines
    assert "INVALID and excluded: LitServe at concurrency 16, by generator: the generator was saturated" in lines
    page = as_markdown("Title", blocks)
    assert page.startswith("# Title\n\n## Concurrency 16\n\n| server | settings | generator: p50 ms | p99 ms |")
    assert "| mosec | batch 8, 1 ms | 1.00 | 2.00 | 400 | 0.40 | 0.36, 0.48 |" in page
    assert all(len(line) <= 100 for line in page.splitlines() if not line.startswith("|"))


def test_the_golden_images_as_jpeg_have_answers_of_their_own(digits: Bundle) -> None:
    with with_jpeg_images(digits) as jpegs:
        names = [name for name, _ in jpegs.golden_inputs()]
        assert [Path(name).stem for name in names] == [Path(name).stem for name, _ in digits.golden_inputs()]
        assert {Image.open(BytesIO(data)).format for _, data in jpegs.golden_inputs()} == {"JPEG"}
        assert jpegs.golden_probabilities().shape == digits.golden_probabilities().shape
        assert (jpegs.golden_probabilities() != digits.golden_probabilities()).any()
        with running(small("one", jpegs), jpegs, [CORE]):
            pass  # it has given the expected answers
    assert not jpegs.path.exists()


def test_the_command_writes_what_it_measured(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = SimpleNamespace()

    def compare(settings: Any, bundle: Bundle, console: Console) -> list[Any]:
        seen.settings, seen.decoder, seen.image = settings, os.environ.get(DECODER_VARIABLE), bundle.golden_inputs()[0]
        return ["measured", Table("Figures", ("server", "rate"), (("trident", "1"),), names=1)]

    monkeypatch.setattr(command, "compare", compare)
    out = tmp_path / "overhead.md"
    flags = ["--quick", "--rounds", "3", "--decoder", "pillow", "--images", "jpeg", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["overhead", str(digits.path), *flags])
    monkeypatch.setenv(DECODER_VARIABLE, "other")
    command.main()
    assert (seen.settings.rounds, seen.settings.choosing_rounds, seen.settings.first_delay_only) == (3, 1, True)
    assert seen.decoder == "pillow"
    assert seen.image[0].endswith(".jpg")
    page = out.read_text()
    assert "python -m loadtest.overhead" in page
    assert "JPEG (quality 90, 4:2:0)" in page
    assert "and of the ceiling: pillow." in page.replace("\n", " ")
    assert "| trident | 1 |" in page
    assert "revision" in capsys.readouterr().out
