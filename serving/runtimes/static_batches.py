"""A torch module with buffers at fixed addresses; on a CUDA device, pinned memory and one CUDA graph per batch size.

    pixels -> pinned memory -> device -> graph -> pinned memory -> probabilities

All steps of a batch are enqueued on one stream, and one synchronisation follows. A graph replays a batch's kernels with one
launch. Without graphs (on the CPU, or where a capture fails) the module is called instead; all else is the same.

A batch is padded to the next size that has a graph. `batch_sizes` has every size up to 16 and eight per power of two above,
so that padding adds at most an eighth. The rows of a batch do not depend on each other: padded rows hold old pixels, and
their probabilities are not read.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels

log = logging.getLogger(__name__)

_STEPS_PER_DOUBLING: Final = 8
_WARM_UP_CALLS: Final = 3  # before a capture: libraries allocate workspaces and choose kernels
_TIMED_CALLS: Final = 5
_LAYOUTS: Final = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}

Module = Callable[[Tensor], Tensor]


class StaticBatches:
    """Runs a module on batches of up to `max_batch_size` images. `infer` blocks; call it from one thread at a time.

    Args:
        module: uint8 `[N, 3, H, W]` -> float32 `[N, classes]`, with its weights on `device`.
        image_shape: `(3, H, W)`.
        graphs: capture CUDA graphs, if `device` is a CUDA device.
    """

    def __init__(
        self,
        module: Module,
        device: torch.device,
        image_shape: tuple[int, int, int],
        max_batch_size: int,
        *,
        graphs: bool = True,
    ) -> None:
        started = time.perf_counter()
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._graphs = graphs and is_cuda
        self._pool: Any = torch.cuda.graph_pool_handle() if self._graphs else None
        shape = (max_batch_size, *image_shape)
        host_pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=is_cuda)
        self._host_pixels, self._host_array = host_pixels, host_pixels.numpy()
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        if is_cuda:
            torch.cuda.synchronize()  # the weights and the buffer came on another stream
        with self._on_stream():
            self._layout = self._fastest_layout(module) if is_cuda else torch.contiguous_format
            self._module: Module = lambda pixels: module(pixels.contiguous(memory_format=self._layout))
            classes = self._module(self._pixels[:1]).shape[1]
            self._host_probabilities = torch.zeros((max_batch_size, classes), pin_memory=is_cuda)
            # The largest first: the smaller graphs then reuse its memory.
            sizes = batch_sizes(max_batch_size)
            self._runs = {size: self._prepared(size) for size in reversed(sizes)}
        if is_cuda:
            torch.cuda.synchronize()
            what = f"{len(sizes)} CUDA graphs" if self._graphs else "no CUDA graphs"
            layout = next(name for name, layout in _LAYOUTS.items() if layout == self._layout)
            log.info("%s, %s, prepared in %.1f s", what, layout, time.perf_counter() - started)

    @property
    def has_graphs(self) -> bool:
        """Whether batches are replayed from CUDA graphs."""
        return self._graphs

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch.

        Raises:
            ValueError: the batch is larger than `max_batch_size`.
        """
        count = len(pixels)
        if count > len(self._host_array):
            raise ValueError(f"{count} images in a batch; at most {len(self._host_array)} were prepared for")
        self._host_array[:count] = pixels
        with self._on_stream():
            self._pixels[:count].copy_(self._host_pixels[:count], non_blocking=True)
            probabilities = self._runs[padded_size(count, len(self._host_array))]()
            self._host_probabilities[:count].copy_(probabilities[:count], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        return self._host_probabilities[:count].numpy().copy()  # the next batch overwrites the buffer

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        stream = torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()
        with torch.inference_mode(), stream:
            yield

    def _prepared(self, size: int) -> Callable[[], Tensor]:
        """What computes the probabilities of the first `size` images in the device's buffer."""
        pixels = self._pixels[:size]
        for _ in range(_WARM_UP_CALLS if self._stream is not None else 1):
            self._module(pixels)
        if self._graphs:
            try:
                return self._captured(pixels)
            except RuntimeError as error:
                self._graphs = False
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # the other one allocates for graphs
                log.warning("no CUDA graphs: the capture of a batch of %d failed: %s", size, error)
        return lambda: self._module(pixels)

    def _captured(self, pixels: Tensor) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            probabilities = self._module(pixels)

        def replay() -> Tensor:
            graph.replay()
            return probabilities

        return replay

    def _fastest_layout(self, module: Module) -> torch.memory_format:
        """Channels first or last, by a measurement with the largest batch: it depends on device, model and precision."""
        seconds: dict[torch.memory_format, float] = {}
        for layout in _LAYOUTS.values():
            for number in range(_WARM_UP_CALLS + _TIMED_CALLS):
                if number == _WARM_UP_CALLS:
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                module(self._pixels.contiguous(memory_format=layout))
            torch.cuda.synchronize()
            seconds[layout] = time.perf_counter() - started
        return min(seconds, key=lambda layout: seconds[layout])


def batch_sizes(max_batch_size: int) -> list[int]:
    """The sizes to which batches are padded: 1 to 16, then 18, 20 ... 32, 36 ... 64, 72 ...; `max_batch_size` is the last."""
    return sorted({padded_size(count, max_batch_size) for count in range(1, max_batch_size + 1)})


def padded_size(count: int, max_batch_size: int) -> int:
    """The smallest batch size for `count` images."""
    doublings = max(0, (count - 1).bit_length() - 1)
    step = max(1, (1 << doublings) // _STEPS_PER_DOUBLING)
    return min(max_batch_size, -(-count // step) * step)
