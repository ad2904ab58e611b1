"""The ceiling: decode and model in a plain loop, without any server.

python -m loadtest.overhead.ceiling BUNDLE PICTURE SECONDS      (prints pictures per second: one by one, and in
batches)
"""

import json
import sys
import time
from pathlib import Path

from loadtest.overhead.model import MAX_BATCH_SIZE, Model


def main() -> None:
    """Measure, print JSON."""
    bundle, picture, seconds = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), float(sys.argv[3])
    model = Model(bundle)
    for _ in range(20):
        model.infer([model.decode(picture)])
    print(
        json.dumps(
            {"single": _rate(model, picture, 1, seconds), "batched": _rate(model, picture, MAX_BATCH_SIZE, seconds)}
        )
    )


def _rate(model: Model, picture: bytes, batch_size: int, seconds: float) -> float:
    done = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        model.infer([model.decode(picture) for _ in range(batch_size)])
        done += batch_size
    return done / elapsed


if __name__ == "__main__":
    main()
