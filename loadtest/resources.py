"""What a run cost its machine: CPU seconds, memory and threads of each server's process tree, and of everybody else."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
from pydantic import BaseModel, ConfigDict

from loadtest.gpu import Gpus, GpuUse

_SAMPLE_S: Final = 0.5
BUSY_CORES: Final = 0.1  # a server that should be idle, and uses more, disturbs the one that is measured
DISTURBED_CORES: Final = 0.15  # as much taken by other processes of the machine is worth a remark


class ResourceUse(BaseModel):
    """What one run took.

    `cpu_s`: CPU seconds of the server's process tree; `cores` the same per second. `memory_mib`: its resident memory, at
    its highest; `memory_start_mib`, `memory_end_mib`: at the ends. `idle_cores`: what each server that was not under
    load used meanwhile. `other_cores`: what was used by processes that are neither servers nor the generator.
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

    @property
    def not_idle(self) -> str:
        """'' if all others were idle, else which one was not."""
        busy = [f"{lane} used {cores:.2f} cores" for lane, cores in self.idle_cores.items() if cores > BUSY_CORES]
        return "; ".join(busy)


@dataclass
class Watch:
    """What is being watched; `use` is there after the block, None if the server's processes are unknown."""

    use: ResourceUse | None = None


@dataclass
class _Samples:
    memory: list[float] = field(default_factory=list)
    threads: int = 0


@contextmanager
def watching(server: str, pids: Mapping[str, Sequence[int]], own: Sequence[int]) -> Iterator[Watch]:
    """Watch the process trees during a block.

    Args:
        server: the one under load.
        pids: the leaders of every server's processes.
        own: the generator's and the benchmark's.
    """
    watch = Watch()
    if not pids.get(server):
        yield watch
        return
    samples, stop = _Samples(), threading.Event()
    with Gpus() as gpus:
        sampler = threading.Thread(target=_sample, args=(pids[server], samples, gpus, stop), daemon=True)
        started, before, busy = time.perf_counter(), _all_cpu(pids), _machine_busy_s()
        own_before = _cpu_s(own)
        sampler.start()
        try:
            yield watch
        finally:
            stop.set()
            sampler.join()
        seconds = time.perf_counter() - started
        after = _all_cpu(pids)
        spent = {name: max(0.0, after[name] - before[name]) for name in pids}
        others = _machine_busy_s() - busy - sum(spent.values()) - (_cpu_s(own) - own_before)
        watch.use = ResourceUse(
            seconds=seconds,
            cpu_s=spent[server],
            cores=spent[server] / seconds,
            memory_mib=max(samples.memory),
            memory_start_mib=samples.memory[0],
            memory_end_mib=samples.memory[-1],
            threads=samples.threads,
            idle_cores={name: value / seconds for name, value in spent.items() if name != server},
            other_cores=max(0.0, others / seconds),
            gpu=gpus.use(),
        )


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


def _sample(pids: Sequence[int], samples: _Samples, gpus: Gpus, stop: threading.Event) -> None:
    processes = _tree(pids)  # found once: walking all processes of the machine takes a core's time
    while True:
        memory, threads = 0, 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                threads += process.num_threads()
        samples.memory.append(memory / 2**20)
        samples.threads = max(samples.threads, threads)
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


def _cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of process trees so far, children that have ended included."""
    total = 0.0
    for process in _tree(pids):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _all_cpu(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: _cpu_s(leaders) for name, leaders in pids.items()}


def _machine_busy_s() -> float:
    """CPU seconds that the whole machine has worked so far."""
    times: Any = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
