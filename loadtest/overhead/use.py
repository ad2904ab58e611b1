"""What a turn uses: the CPU time of wrk and of each process of the server, and the server's connections."""

import resource
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

_LISTED_CORES = 0.02  # processes that use less are not listed


@dataclass
class Use:
    """What a turn used.

    Args:
        load_cores: cores that the child processes of this process used, on average: wrk.
        cores: cores that each process of the server used, by name and pid.
        connections: connections of each process of the server at half time, by pid; processes without any are left out.
    """

    load_cores: float = 0.0
    cores: dict[tuple[str, int], float] = field(default_factory=dict)
    connections: dict[int, int] = field(default_factory=dict)


@contextmanager
def watching(pid: int, port: int, seconds: float) -> Iterator[Use]:
    """Watch a server during a load of `seconds`; the use is complete after the block.

    Args:
        pid: the root process of the server.
        port: where the server accepts connections.
    """
    use = Use()
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    timer = threading.Timer(seconds / 2, lambda: use.connections.update(_connections(processes, port)))
    before, load_before = {one.pid: _cpu_s(one) for one in processes}, _children_cpu_s()
    timer.start()
    try:
        yield use
    finally:
        timer.join()
    use.load_cores = (_children_cpu_s() - load_before) / seconds
    use.cores = {(one.name(), one.pid): (_cpu_s(one) - before[one.pid]) / seconds for one in processes}


def cores_of_processes(uses: Sequence[Use]) -> str:
    """Cores by process: `mosec 0.41, python 0.80, python 0.79`. Within a turn the busiest process comes first, so that the
    averages over the turns do not hide an idle one.
    """
    ranked: dict[tuple[str, int], float] = defaultdict(float)
    for use in uses:
        for name in {name for name, _ in use.cores}:
            busiest = sorted((cores for (other, _), cores in use.cores.items() if other == name), reverse=True)
            for rank, cores in enumerate(busiest):
                ranked[name, rank] += cores / len(uses)
    listed = sorted(key for key, cores in ranked.items() if cores >= _LISTED_CORES)
    return ", ".join(f"{name} {ranked[name, rank]:.2f}" for name, rank in listed) or "-"


def connections_of_processes(uses: Sequence[Use]) -> str:
    """Connections by process, a group per turn: `9 7; 0 16`. Left out: processes that held none in all turns."""
    pids = sorted({pid for use in uses for pid in use.connections})
    return "; ".join(" ".join(str(use.connections.get(pid, 0)) for pid in pids) or "-" for use in uses) or "-"


def _connections(processes: Sequence[psutil.Process], port: int) -> dict[int, int]:
    """The number of connections to a port that each process holds."""
    found = {}
    for one in processes:
        open_ = [
            connection
            for connection in one.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.laddr and connection.laddr.port == port
        ]
        if open_:
            found[one.pid] = len(open_)
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
