"""The in-process ceiling: decode and model in a plain loop, without any server, with the runtime that a server would use.

python -m serving.runtimes.ceiling BUNDLE RUNTIME PRECISION THREADS BATCH SECONDS     (prints JSON: images per second)

One process with one copy of the model: a server with W workers of T threads has W of these on the same cores.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bundle.preprocess import preprocess
from bundle.store import read_bundle
from serving.runtimes import open_runtime, warm_up

_WARM_UP_S = 0.3


def main() -> None:
    """Measure one image at a time, and full batches."""
    bundle = read_bundle(Path(sys.argv[1]), check=False)
    arguments: Any = sys.argv[2:4]
    runtime, precision = arguments
    threads, batch, seconds = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    model = open_runtime(bundle, runtime, precision, "cpu", threads, batch)
    images = [data for _, data in bundle.golden_inputs()]

    def rate(size: int, duration_s: float) -> float:
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < duration_s:
            batch = [preprocess(images[(done + i) % len(images)], bundle.manifest.input) for i in range(size)]
            model.infer(np.stack(batch))
            done += size
        return done / elapsed

    warm_up(model, bundle, batch)
    rate(1, _WARM_UP_S)
    rate(batch, _WARM_UP_S)
    print(json.dumps({"single": rate(1, seconds / 2), "batched": rate(batch, seconds / 2)}))


if __name__ == "__main__":
    main()
