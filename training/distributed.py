"""Distributed training: the processes that torchrun starts, and what they exchange.

Each process runs the same program on its share of every batch, with NCCL between CUDA devices and gloo between CPUs.
Without torchrun there is one process, and the functions here have no effect.
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
    """A group of `count` processes; this one has number `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the files and the output."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_leader(self, value: Any) -> Any:
        """Return the leader's `value` in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait_for_all(self) -> None:
        """Wait until every process has reached this call."""
        if self.count > 1:
            dist.barrier()


def started_by_torchrun() -> bool:
    """Whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, until the block ends; `device` is the setting of that name."""
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
