"""`python -m loadtest.generator`: one spec per line on standard input, one recording per line on standard output."""

import os

os.environ.setdefault("GEVENT_BACKEND", "select")  # timers are exact to 0.1 ms; those of epoll to 1 ms

# Locust must be imported first: it patches the standard library for gevent.
import locust  # isort: skip  # noqa: F401

import argparse
import ctypes
import sys

from loadtest.generator.distributed import measure_with_workers, work
from loadtest.generator.process import measure_here
from loadtest.generator.spec import GeneratorSpec

_PR_SET_TIMERSLACK = 29


def main() -> None:
    """Make one run after another until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker-of", nargs=2, type=int, metavar=("PORT", "INDEX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # otherwise the kernel may wake us 50 us late
    for line in sys.stdin:
        spec = GeneratorSpec.model_validate_json(line)
        if arguments.worker_of:
            work(spec, *arguments.worker_of)
            return
        measured = measure_with_workers(spec) if spec.processes > 1 else measure_here(spec)
        print(measured.recording(spec.requests_file).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
