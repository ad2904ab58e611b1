"""What a run used of its machine: CPU seconds, memory and threads of each server (its process tree or its container), and
the CPU of all other processes.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psutil
from pydantic import BaseModel, ConfigDict

from loadtest.machine.containers import Container, ContainerUse
from loadtest.machine.gpu import Gpus, GpuUse

_SAMPLE_S: Final = 0.5
BUSY_CORES: Final = 0.1  # an idle server that uses more disturbs the measured one
DISTURBED_CORES: Final = 0.15  # if other processes use more, the run gets a remark


class ResourceUse(BaseModel):
    """What one run used.

    Args:
        cpu_s: CPU seconds of the server's process tree or container; `cores`: the same per second.
        memory_mib: peak resident memory (of a container: its working set).
        memory_start_mib: memory at the start; `memory_end_mib`: at the end.
        idle_cores: cores used by each server that was not under load.
        other_cores: cores used by processes that are neither servers nor the generator.
        container: the effect of the container's limits; None if the server runs in no container.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    cpu_s: float
    cores: float
    memory_mib: float
    memory_start_mib: float
    memory_end_mib: float
    threads: int
    idle_cores: dict[str, float]
    other_cores: float
    gpu: GpuUse | None = None
    container: ContainerUse | None = None

    @property
    def busy_servers(self) -> str | None:
        """The servers that should have been idle and were not, with their use; None if all were idle."""
        busy = [f"{server} used {cores:.2f} cores" for server, cores in self.idle_cores.items() if cores > BUSY_CORES]
        return "; ".join(busy) or None


@dataclass(frozen=True)
class CpuUse:
    """The CPU time that a server has used so far."""

    cpu_s: float
    container: ContainerUse | None = None


class Meter(Protocol):
    """Reads what a server uses; None if it cannot be read now."""

    def cpu(self) -> CpuUse | None:
        """CPU time so far."""

    def size(self) -> tuple[float, int] | None:
        """Current memory in MiB, and number of threads."""


class Processes:
    """Reads process trees of this machine.

    Args:
        pids: the root of each tree.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._tree: list[psutil.Process] = []

    def cpu(self) -> CpuUse | None:
        """CPU time of the tree, including children that have ended."""
        self._tree = _tree(self._pids)
        return CpuUse(_cpu_s(self._tree))

    def size(self) -> tuple[float, int] | None:
        """Memory and threads of the processes that `cpu` found: listing all processes costs too much CPU per sample."""
        memory, threads = 0, 0
        for process in self._tree:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                threads += process.num_threads()
        return memory / 2**20, threads


class InContainer:
    """Reads a server that runs in its own container."""

    def __init__(self, url: str) -> None:
        self._container = Container(url)

    def cpu(self) -> CpuUse | None:
        """CPU time of the cgroup."""
        reading = self._container.read()
        return None if reading is None else CpuUse(reading.cpu_s, reading.use)

    def size(self) -> tuple[float, int] | None:
        """Memory and threads of the cgroup."""
        reading = self._container.read()
        return None if reading is None else (reading.memory_mib, reading.threads)


@dataclass
class Watch:
    """`use` is set when the block of `watching` ends; None if it could not be read for the whole block."""

    use: ResourceUse | None = None


@contextmanager
def watching(server: str, meters: Mapping[str, Meter], own: Sequence[int]) -> Iterator[Watch]:
    """Watch the servers during a block.

    Args:
        server: the name of the server under load.
        meters: one for every server whose use can be read.
        own: pids of the generator and of the benchmark.
    """
    watch = Watch()
    if server not in meters:
        yield watch
        return
    sizes: list[tuple[float, int]] = []
    stop = threading.Event()
    with Gpus() as gpus:
        sampler = threading.Thread(target=_sample, args=(meters[server], sizes, gpus, stop), daemon=True)
        started, busy = time.perf_counter(), _machine_busy_s()
        before = {name: meter.cpu() for name, meter in meters.items()}
        own_before = _cpu_s(_tree(own))
        sampler.start()
        try:
            yield watch
        finally:
            stop.set()
            sampler.join()
        seconds = time.perf_counter() - started
        after = {name: meter.cpu() for name, meter in meters.items()}
        spent = {name: used for name in meters if (used := _spent(before[name], after[name])) is not None}
        if server not in spent or not sizes:
            return
        others = (
            _machine_busy_s() - busy - sum(used.cpu_s for used in spent.values()) - (_cpu_s(_tree(own)) - own_before)
        )
        memory = [memory for memory, _ in sizes]
        watch.use = ResourceUse(
            seconds=seconds,
            cpu_s=spent[server].cpu_s,
            cores=spent[server].cpu_s / seconds,
            memory_mib=max(memory),
            memory_start_mib=memory[0],
            memory_end_mib=memory[-1],
            threads=max(threads for _, threads in sizes),
            idle_cores={name: used.cpu_s / seconds for name, used in spent.items() if name != server},
            other_cores=max(0.0, others / seconds),
            gpu=gpus.use(),
            container=spent[server].container,
        )


def _spent(before: CpuUse | None, after: CpuUse | None) -> CpuUse | None:
    """The difference of two readings; None if one is missing, or if the server was restarted in between."""
    if before is None or after is None or after.cpu_s < before.cpu_s:
        return None
    limits = None
    if before.container is not None and after.container is not None:
        limits = after.container.since(before.container)
    return CpuUse(after.cpu_s - before.cpu_s, limits)


def listening_pids(port: int) -> tuple[int, ...]:
    """This user's processes that listen on a local port, without those whose ancestor listens too."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
                for connection in process.net_connections("tcp")
            ):
                found.add(process.pid)
    return tuple(sorted(pid for pid in found if not found & {parent.pid for parent in _parents(pid)}))


def _parents(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).parents()
    except psutil.Error:
        return []


def _sample(meter: Meter, sizes: list[tuple[float, int]], gpus: Gpus, stop: threading.Event) -> None:
    while True:
        size = meter.size()
        if size is not None:
            sizes.append(size)
        gpus.sample()
        if stop.wait(_SAMPLE_S):
            return


def _tree(pids: Sequence[int]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(pid)
            found.update({process.pid: process for process in [leader, *leader.children(recursive=True)]})
    return list(found.values())


def _cpu_s(tree: Sequence[psutil.Process]) -> float:
    """CPU seconds of processes so far, including their children that have ended."""
    total = 0.0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _machine_busy_s() -> float:
    """Busy CPU seconds of the whole machine so far."""
    times: Any = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
