"""Compare our service with its ceiling, plain FastAPI, mosec, LitServe and BentoML on one core. `make bench-overhead`.

    python -m loadtest.overhead [BUNDLE] [--peers PYTHON] [--rounds N] [--seconds S] [--concurrency 1,16,32] [--paced 0.7]

All servers run on one core, the load on another. Servers that are not measured are paused (SIGSTOP). In each round all are
measured in a new random order, by the load generator and, where it is installed, by wrk. The ceiling is measured before and after
every turn; each share is relative to the mean of these two.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from rich.console import Console

from bundle.errors import TridentError
from bundle.store import Bundle, find_bundle
from loadtest.generator.client import Generator
from loadtest.generator.recording import Recording
from loadtest.generator.wrk import INSTALL_WRK, wrk_is_installed
from loadtest.lanes.ceiling import CeilingSpec, ceiling_loops
from loadtest.machine.environment import describe_environment
from loadtest.overhead.contestants import TRIDENT, ContestantSettings, contestants
from loadtest.overhead.running import RunningContestant, running
from loadtest.overhead.table import show_constant_rate, show_turns
from loadtest.overhead.turns import GENERATOR, WRK, Tool, Turns, at_constant_rate, generator_tool, take_turns, wrk_tool

_LEAST_PACED_S = 10.0
console = Console(width=130)


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("error: two cores are needed, one for the server and one for the load")
    try:
        _compare(arguments, find_bundle(arguments.bundle), cores[0], cores[-1])
    except TridentError as error:
        sys.exit(f"error: {error}")


def _compare(arguments: argparse.Namespace, bundle: Bundle, server_core: int, load_core: int) -> None:
    os.sched_setaffinity(0, {load_core})
    settings = ContestantSettings()
    with ExitStack() as stack:
        servers = []
        for contestant in contestants(bundle, arguments.peers, arguments.only, [settings]):
            with console.status(f"starting {contestant.name}"):
                servers.append(stack.enter_context(running(contestant, bundle, server_core)))
        spec = CeilingSpec(
            runtime="onnxruntime",
            precision="fp32",
            threads=1,
            max_batch_size=settings.max_batch_size,
            cores=(server_core,),
        )
        ceiling = stack.enter_context(ceiling_loops(spec, bundle))
        generator = stack.enter_context(Generator())
        tools: dict[str, Tool] = {GENERATOR: generator_tool(generator, bundle, arguments.seconds, load_core)}
        if wrk_is_installed():
            tools[WRK] = wrk_tool(bundle, arguments.seconds, load_core)
        else:
            console.print(f"without the columns of wrk: {INSTALL_WRK}")
        with console.status("") as status:
            done = take_turns(
                servers,
                arguments.concurrency,
                tools,
                lambda: ceiling(arguments.seconds / 2),
                arguments.rounds,
                arguments.seed,
                lambda round_, name: status.update(f"round {round_ + 1} of {arguments.rounds}: {name}"),
            )
        paced = _paced(arguments, servers, done, generator, bundle, load_core)
    _show(arguments, bundle, done, [server.lane.name for server in servers], list(tools), paced)


def _paced(
    arguments: argparse.Namespace,
    servers: list[RunningContestant],
    done: Turns,
    generator: Generator,
    bundle: Bundle,
    core: int,
) -> Recording | None:
    """Latency of our service at a share of its highest rate; None if it is not requested, or there is no valid rate."""
    trident = next((server for server in servers if server.lane.name == TRIDENT), None)
    turns = [done.of(TRIDENT, concurrency, GENERATOR) for concurrency in arguments.concurrency]
    rates = [median(turn.figures.requests_per_s for turn in valid) for valid in turns if valid]
    if trident is None or not arguments.paced or not rates:
        return None
    seconds = max(_LEAST_PACED_S, arguments.seconds * arguments.rounds)
    with console.status("at a constant rate"):
        return at_constant_rate(trident, generator, bundle, max(rates) * arguments.paced, seconds, core)


def _show(
    arguments: argparse.Namespace,
    bundle: Bundle,
    done: Turns,
    names: list[str],
    tools: list[str],
    paced: Recording | None,
) -> None:
    single = median(ceiling.single for ceiling in done.ceilings)
    batched = median(ceiling.batched for ceiling in done.ceilings)
    console.print(
        f"{bundle.name} on one core of {describe_environment().cpu}; ceiling (decode and model in a loop): {single:.0f} images/s "
        f"one by one, {batched:.0f} in batches",
        highlight=False,
    )
    show_turns(console, done, names, tools)
    if paced is not None:
        show_constant_rate(console, paced, arguments.paced)
    console.print(
        "of ceiling: requests/s divided by the ceiling one by one. LitServe and BentoML get images as base64 in JSON.\n"
        f"{arguments.rounds} rounds of {arguments.seconds:g} s, order by seed {arguments.seed}; medians over the rounds",
        highlight=False,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="MODEL, MODEL:VERSION or a folder; default: the newest bundle")
    parser.add_argument("--peers", type=Path, help="a Python with mosec, litserve and bentoml")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of servers; default: all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn; wrk rounds to whole seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 32])
    parser.add_argument(
        "--paced", type=float, default=0.7, help="share of the highest rate for the run at a constant rate; 0: none"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
