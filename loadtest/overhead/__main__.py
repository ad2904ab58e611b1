"""Compare our service with its ceiling, plain FastAPI, mosec, LitServe and BentoML on one core. `make bench-overhead`.

    python -m loadtest.overhead [BUNDLE] [--peers PYTHON] [--quick] [--images jpeg] [--decoder pillow] [--out FILE.md]
    python -m loadtest.overhead [BUNDLE] [--peers PYTHON] --workers 1,2,4      Trident and mosec over cores

Every server runs with each of several settings; the best count, for each server and concurrency. All servers run on one core, the
load on another. Servers that are not measured are paused (SIGSTOP). In each round all are measured in a new random order, by the
load generator and, where it is installed, by wrk.
"""

import argparse
import os
import shlex
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bundle.errors import TridentError
from bundle.jpeg import DECODER_VARIABLE
from bundle.store import Bundle, find_bundle
from loadtest.machine.environment import describe_environment
from loadtest.overhead.comparison import ComparisonSettings, compare
from loadtest.overhead.contestants import BATCH_SIZES
from loadtest.overhead.images import QUALITY, SUBSAMPLING, with_jpeg_images
from loadtest.overhead.scaling import ScalingSettings, measure_scaling
from loadtest.overhead.table import Block, as_markdown, show

_PEERS: Final = ("mosec", "litserve", "bentoml", "onnxruntime", "pillow", "simplejpeg")
_QUICK: Final = {"batch_sizes": [1, 16], "choosing_rounds": 1, "rounds": 1, "paced": 0.0}
_CONCURRENCIES: Final = (1, 8, 16, 32)
_QUICK_CONCURRENCIES: Final = (1, 16)
_CONNECTIONS: Final = (4, 16, 64)
console = Console(width=160)


def main() -> None:
    """Measure, print, and write the results to a file if one is given."""
    arguments = _arguments()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("error: two cores are needed, one for the server and one for the load")
    _choose_decoder(arguments.decoder)
    try:
        bundle = find_bundle(arguments.bundle)
        with with_jpeg_images(bundle) if arguments.images == "jpeg" else nullcontext(bundle) as sent:
            measured = _measure(arguments, sent)
        blocks = [*_about(arguments, bundle), *measured]
        show(console, blocks)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(as_markdown(f"Serving overhead of {bundle.name}", blocks))
    except TridentError as error:
        sys.exit(f"error: {error}")


def _choose_decoder(decoder: str) -> None:
    """Set the environment variable that the contestants and the ceiling inherit."""
    if decoder == "pillow":
        os.environ[DECODER_VARIABLE] = decoder
    else:
        os.environ.pop(DECODER_VARIABLE, None)


def _measure(arguments: argparse.Namespace, bundle: Bundle) -> list[Block]:
    common: dict[str, Any] = {
        "peers": arguments.peers,
        "batch_sizes": arguments.batch_sizes,
        "first_delay_only": arguments.quick,
        "rounds": arguments.rounds,
        "seed": arguments.seed,
    }
    if arguments.workers:
        scaling = ScalingSettings(
            workers=arguments.workers,
            connections=arguments.concurrency or _CONNECTIONS,
            seconds=arguments.seconds or 2.0,
            **common,
        )
        return measure_scaling(scaling, bundle, console)
    comparison = ComparisonSettings(
        only=arguments.only,
        concurrencies=arguments.concurrency or (_QUICK_CONCURRENCIES if arguments.quick else _CONCURRENCIES),
        choosing_rounds=arguments.choosing_rounds,
        seconds=arguments.seconds or 1.0,
        paced=arguments.paced,
        **common,
    )
    return compare(comparison, bundle, console)


def _about(arguments: argparse.Namespace, bundle: Bundle) -> list[Block]:
    """The command, the machine, the versions, and what was sent."""
    machine = describe_environment()
    command = shlex.join(["python", "-m", "loadtest.overhead", *sys.argv[1:]])
    versions = machine.versions | _versions(arguments.peers)
    as_jpeg = f"as JPEG (quality {QUALITY}, {SUBSAMPLING}), expected answers from the ONNX file in process"
    return [
        f"`{command}`",
        f"{datetime.now(UTC):%Y-%m-%d} on {machine.cpu}, {machine.cores} cores, {machine.system}, revision "
        f"{machine.git_revision or 'unknown'}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}.",
        f"Images: the golden images of {bundle.name}, {as_jpeg if arguments.images == 'jpeg' else 'as they are'}. "
        f"Decoder of all contestants and of the ceiling: {arguments.decoder}.",
    ]


def _versions(peers: Path | None) -> dict[str, str]:
    """The versions of the packages that the peers use."""
    if peers is None:
        return {}
    code = f"from importlib.metadata import version\nfor name in {_PEERS}: print(name, version(name))"
    done = subprocess.run([str(peers), "-c", code], capture_output=True, text=True, check=False)
    return {f"{name} (peers)": version for name, version in map(str.split, done.stdout.splitlines())}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="MODEL, MODEL:VERSION or a folder; default: the newest bundle")
    parser.add_argument("--peers", type=Path, help="a Python with mosec, litserve and bentoml")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of servers; default: all")
    parser.add_argument("--quick", action="store_true", help="few settings, one round: a look within two minutes")
    parser.add_argument(
        "--concurrency", type=_numbers, help="clients; default: 1,8,16,32; with --workers: 4,16,64; with --quick: 1,16"
    )
    parser.add_argument("--batch-sizes", type=_numbers, default=list(BATCH_SIZES))
    parser.add_argument("--choosing-rounds", type=int, default=2, help="rounds that choose the settings")
    parser.add_argument("--rounds", type=int, default=4, help="rounds that are reported")
    parser.add_argument(
        "--seconds", type=float, help="length of a turn; wrk rounds to whole seconds; default: 1; with --workers: 2"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--paced", type=float, default=0.7, help="share of the highest rate for the run at a constant rate; 0: none"
    )
    parser.add_argument("--images", choices=["bundle", "jpeg"], default="bundle", help="jpeg: encode them as JPEG")
    parser.add_argument("--decoder", choices=["default", "pillow"], default="default", help="pillow: no faster decoder")
    parser.add_argument(
        "--workers", type=_numbers, default=[], help="measure these numbers of workers, on as many cores"
    )
    parser.add_argument("--out", type=Path, help="write the results to this Markdown file")
    if parser.parse_args().quick:
        parser.set_defaults(**_QUICK)  # other flags win over these
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
