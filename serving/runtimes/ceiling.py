"""The ceiling: decode and model in a loop without a server, with the runtime that a server would use.

    echo 2 | python -m serving.runtimes.ceiling BUNDLE RUNTIME PRECISION THREADS BATCH [--device cuda --decoders 8]

Prints `ready` when the model is loaded. For each line on standard input, a number of seconds, it prints one line of JSON:
images per second, one by one and in batches. In between it waits. One process has one copy of the model; the ceiling of a
server with W workers of T threads is the sum of W such processes on the same cores.

With `--decoders`, that many threads decode whole batches while the model computes; this is the ceiling in batches where the
model does not compute on the cores that decode.
"""

import argparse
import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, get_args

import numpy as np

from bundle.manifest import Precision
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle, read_bundle
from serving.runtimes import Runtime, open_runtime, warm_up
from serving.settings import Device, RuntimeName

_WARM_UP_S: Final = 0.3
_WAITING_BATCHES: Final = 2
_POLL_S: Final = 0.05


def main() -> None:
    """Measure on request."""
    arguments = _arguments()
    bundle, batch_size = read_bundle(arguments.bundle, check=False), arguments.batch_size
    model = open_runtime(
        bundle, arguments.runtime, arguments.precision, arguments.device, arguments.threads, batch_size
    )
    warm_up(model, bundle, batch_size)
    measure_single = partial(_in_series, model, _decoded(bundle, 1))
    decode = _decoded(bundle, batch_size)
    measure_batched = (
        partial(_beside_decoders, model, decode, arguments.decoders)
        if arguments.decoders
        else partial(_in_series, model, decode)
    )
    for measure in (measure_single, measure_batched):
        measure(_WARM_UP_S)
    print("ready", flush=True)
    for line in sys.stdin:
        each_s = float(line) / 2
        print(json.dumps({"single": measure_single(each_s), "batched": measure_batched(each_s)}), flush=True)


def _decoded(bundle: Bundle, batch_size: int) -> Callable[[int], Pixels]:
    """A function that decodes a batch of the golden images, from the image of a number on."""
    images = [data for _, data in bundle.golden_inputs()]
    spec = bundle.manifest.input

    def decode(first: int) -> Pixels:
        return np.stack([preprocess(images[(first + i) % len(images)], spec) for i in range(batch_size)])

    return decode


def _in_series(model: Runtime, decode: Callable[[int], Pixels], duration_s: float) -> float:
    """Images per second of one thread that decodes a batch, then computes it."""
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < duration_s:
        done += len(model.infer(decode(done)))
    return done / elapsed


def _beside_decoders(model: Runtime, decode: Callable[[int], Pixels], decoders: int, duration_s: float) -> float:
    """Images per second of a thread that computes batches, beside `decoders` threads that decode them."""
    with _decoding(decode, decoders) as take:
        for _ in range(decoders + _WAITING_BATCHES):  # decoded before the clock starts
            model.infer(take())
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < duration_s:
            done += len(model.infer(take()))
    return done / elapsed


@contextmanager
def _decoding(decode: Callable[[int], Pixels], decoders: int) -> Iterator[Callable[[], Pixels]]:
    """Threads that decode batches. Yields a function that waits for the next one."""
    decoded: queue.Queue[Pixels] = queue.Queue(_WAITING_BATCHES)
    stop = threading.Event()

    def run(number: int) -> None:
        while not stop.is_set():
            batch = decode(number)
            number += decoders * len(batch)
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    decoded.put(batch, timeout=_POLL_S)
                    break

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(decoders)]
    for thread in threads:
        thread.start()
    try:
        yield decoded.get
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("runtime", choices=get_args(RuntimeName))
    parser.add_argument("precision", choices=get_args(Precision))
    parser.add_argument("threads", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--decoders", type=int, default=0, help="threads that decode; 0: the model's thread decodes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
