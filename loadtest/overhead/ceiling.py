"""The ceiling: decode and model in a plain loop, without any server.

    python -m loadtest.overhead.ceiling BUNDLE IMAGE

For each line on stdin, a number of seconds, it prints images per second: one by one, and in batches. In between it
waits, so that its turns can lie right beside those of the servers.
"""

import json
import sys
import time
from pathlib import Path

from loadtest.overhead.model import MAX_BATCH_SIZE, Model


def main() -> None:
    """Measure when asked to, print JSON."""
    bundle, image = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    model = Model(bundle)
    for line in sys.stdin:
        seconds = float(line)
        found = {"single": _rate(model, image, 1, seconds), "batched": _rate(model, image, MAX_BATCH_SIZE, seconds)}
        print(json.dumps(found), flush=True)


def _rate(model: Model, image: bytes, batch_size: int, seconds: float) -> float:
    done = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        model.infer([model.decode(image) for _ in range(batch_size)])
        done += batch_size
    return done / elapsed


if __name__ == "__main__":
    main()
