"""One process or several (torchrun): who am I, and the few things that must be agreed.

Started by torchrun, every process runs the same program on its share of each batch: NCCL between CUDA devices, gloo
between CPUs. Without torchrun there is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """`count` processes, of which this is number `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of every process's `tensor`, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def agreed(self, value: Any) -> Any:
        """The leader's `value`."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


def started_by_torchrun() -> bool:
    """Whether several processes were asked for."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the others that torchrun started, for the time of the block; `device` is the setting of that name."""
    if not started_by_torchrun():
        yield Processes()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
