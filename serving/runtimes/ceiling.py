"""The ceiling: decode and model in a loop without a server, with the runtime that a server would use.

    echo 2 | python -m serving.runtimes.ceiling BUNDLE RUNTIME PRECISION THREADS BATCH

Prints `ready` when the model is loaded. For each line on standard input, a number of seconds, it prints one line of JSON:
images per second, one by one and in batches. In between it waits. One process has one copy of the model; the ceiling of a
server with W workers of T threads is the sum of W such processes on the same cores.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bundle.preprocess import preprocess
from bundle.store import Bundle, read_bundle
from serving.runtimes import Runtime, open_runtime, warm_up

_WARM_UP_S = 0.3


def main() -> None:
    """Measure on request."""
    bundle = read_bundle(Path(sys.argv[1]), check=False)
    arguments: Any = sys.argv[2:4]
    runtime, precision = arguments
    threads, batch_size = int(sys.argv[4]), int(sys.argv[5])
    model = open_runtime(bundle, runtime, precision, "cpu", threads, batch_size)
    warm_up(model, bundle, batch_size)
    images = [data for _, data in bundle.golden_inputs()]
    for size in (1, batch_size):
        _images_per_s(model, bundle, images, size, _WARM_UP_S)
    print("ready", flush=True)
    for line in sys.stdin:
        each_s = float(line) / 2
        single, batched = (_images_per_s(model, bundle, images, size, each_s) for size in (1, batch_size))
        print(json.dumps({"single": single, "batched": batched}), flush=True)


def _images_per_s(model: Runtime, bundle: Bundle, images: list[bytes], batch_size: int, duration_s: float) -> float:
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < duration_s:
        batch = [preprocess(images[(done + i) % len(images)], bundle.manifest.input) for i in range(batch_size)]
        model.infer(np.stack(batch))
        done += batch_size
    return done / elapsed


if __name__ == "__main__":
    main()
