"""What a run cost its machine: CPU seconds, memory and threads of each server (its process tree, or its container), and
of everybody else.
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

from loadtest.containers import Container, ContainerUse
from loadtest.gpu import Gpus, GpuUse

_SAMPLE_S: Final = 0.5
BUSY_CORES: Final = 0.1  # a server that should be idle, and uses more, disturbs the one that is measured
DISTURBED_CORES: Final = 0.15  # as much taken by other processes of the machine is worth a remark


class ResourceUse(BaseModel):
    """What one run took.

    `cpu_s`: CPU seconds of the server's process tree or container; `cores` the same per second. `memory_mib`: its resident
    memory (of a container: its working set), at its highest; `memory_start_mib`, `memory_end_mib`: at the ends.
    `idle_cores`: what each server that was not under load used meanwhile. `other_cores`: what was used by processes that are
    neither servers nor the generator. `container`: what its limits did to it, if it is in one.
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
    def not_idle(self) -> str:
        """'' if all others were idle, else which one was not."""
        busy = [f"{lane} used {cores:.2f} cores" for lane, cores in self.idle_cores.items() if cores > BUSY_CORES]
        return "; ".join(busy)


@dataclass(frozen=True)
class Counters:
    """What a server has used so far."""

    cpu_s: float
    container: ContainerUse | None = None


class Meter(Protocol):
    """Reads a server's use; None where it cannot be read now."""

    def counters(self) -> Counters | None:
        """So far."""

    def size(self) -> tuple[float, int] | None:
        """MiB of memory and number of threads, at this moment."""


class Processes:
    """Process trees of this machine.

    Args:
        pids: their leaders.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._tree: list[psutil.Process] = []

    def counters(self) -> Counters | None:
        """CPU seconds, those of children that have ended included."""
        self._tree = _tree(self._pids)
        return Counters(_cpu_s(self._tree))

    def size(self) -> tuple[float, int] | None:
        """Of the processes that the last reading of the counters found: walking all of the machine takes a core's time."""
        memory, threads = 0, 0
        for process in self._tree:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                threads += process.num_threads()
        return memory / 2**20, threads


class InContainer:
    """A server in a container of its own."""

    def __init__(self, url: str) -> None:
        self._container = Container(url)

    def counters(self) -> Counters | None:
        """Of its cgroup."""
        reading = self._container.read()
        return None if reading is None else Counters(reading.cpu_s, reading.use)

    def size(self) -> tuple[float, int] | None:
        """Of its cgroup."""
        reading = self._container.read()
        return None if reading is None else (reading.memory_mib, reading.threads)


@dataclass
class Watch:
    """What is being watched; `use` is there after the block, None if it could not be read (all of the time)."""

    use: ResourceUse | None = None


@contextmanager
def watching(server: str, meters: Mapping[str, Meter], own: Sequence[int]) -> Iterator[Watch]:
    """Watch the servers during a block.

    Args:
        server: the one under load.
        meters: of every server whose use can be read.
        own: the generator's and the benchmark's processes.
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
        before = {name: meter.counters() for name, meter in meters.items()}
        own_before = _cpu_s(_tree(own))
        sampler.start()
        try:
            yield watch
        finally:
            stop.set()
            sampler.join()
        seconds = time.perf_counter() - started
        after = {name: meter.counters() for name, meter in meters.items()}
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


def _spent(before: Counters | None, after: Counters | None) -> Counters | None:
    """What came between two readings; None if one is missing, or the server was started anew in between."""
    if before is None or after is None or after.cpu_s < before.cpu_s:
        return None
    limits = None
    if before.container is not None and after.container is not None:
        limits = after.container.since(before.container)
    return Counters(after.cpu_s - before.cpu_s, limits)


def listening_pids(port: int) -> tuple[int, ...]:
    """The processes of this user that listen on a port of this machine: the topmost of each tree."""
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
    """CPU seconds of processes so far, those of their children that have ended included."""
    total = 0.0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _machine_busy_s() -> float:
    """CPU seconds that the whole machine has worked so far."""
    times: Any = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
