"""A container's resource use, from its own cgroup (v2 or v1), for Prometheus and the load test. Standard library only.

    python -IS serving/cgroup.py     (serves /metrics on PORT, in each server's container)

The metrics have cAdvisor's names. They cover the whole container: the server, this exporter and the health check.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PORT: Final = 9101
HELP: Final = {
    "container_cpu_usage_seconds_total": "CPU seconds used.",
    "container_cpu_cfs_periods_total": "Periods in which the CPU limit was enforced.",
    "container_cpu_cfs_throttled_periods_total": "Periods in which the container was throttled.",
    "container_cpu_cfs_throttled_seconds_total": "Seconds that its threads were throttled, summed over all cores.",
    "container_memory_working_set_bytes": "Memory in use, without reclaimable page cache.",
    "container_spec_memory_limit_bytes": "The memory limit; absent if there is none.",
    "container_spec_cpu_quota": "The CPU limit: microseconds of CPU per period, summed over all cores; absent if there is none.",
    "container_spec_cpu_period": "The period of the CPU limit, in microseconds.",
    "container_threads": "Threads of all its processes.",
}
_NO_LIMIT: Final = 2**60  # v1 writes `no limit` as the largest multiple of a page


def usage(root: Path = ROOT) -> dict[str, float]:
    """The values by metric name, without those that the kernel does not report or limit."""
    values = _v2(root) if (root / "cgroup.controllers").exists() else _v1(root)
    values["container_spec_cpu_quota"], values["container_spec_cpu_period"] = cpu_limit(root) or (None, None)
    return {name: value for name, value in values.items() if value is not None}


def cpu_limit(root: Path = ROOT) -> tuple[float, float] | None:
    """Microseconds of CPU per period, and the period; None without a limit or outside a container."""
    if (root / "cpu.max").exists():
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else (float(quota), float(period))
    v1_quota, v1_period = _number(root / "cpu/cpu.cfs_quota_us"), _number(root / "cpu/cpu.cfs_period_us")
    return (v1_quota, v1_period) if v1_quota and v1_period and v1_quota > 0 else None


def exposition(root: Path = ROOT) -> str:
    """The values in Prometheus' text format."""
    return "".join(
        f"# HELP {name} {HELP[name]}\n# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name} {value}\n"
        for name, value in usage(root).items()
    )


def _v2(root: Path) -> dict[str, float | None]:
    cpu, memory = _table(root / "cpu.stat"), _table(root / "memory.stat")
    return {
        "container_cpu_usage_seconds_total": _scaled(cpu.get("usage_usec"), 1e-6),
        "container_cpu_cfs_periods_total": cpu.get("nr_periods"),
        "container_cpu_cfs_throttled_periods_total": cpu.get("nr_throttled"),
        "container_cpu_cfs_throttled_seconds_total": _scaled(cpu.get("throttled_usec"), 1e-6),
        "container_memory_working_set_bytes": _less(_number(root / "memory.current"), memory.get("inactive_file")),
        "container_spec_memory_limit_bytes": _number(root / "memory.max"),
        "container_threads": _number(root / "pids.current"),
    }


def _v1(root: Path) -> dict[str, float | None]:
    cpu, memory = _table(root / "cpu/cpu.stat"), _table(root / "memory/memory.stat")
    used, limit = (_number(root / f"memory/memory.{name}_in_bytes") for name in ("usage", "limit"))
    return {
        "container_cpu_usage_seconds_total": _scaled(_number(root / "cpuacct/cpuacct.usage"), 1e-9),
        "container_cpu_cfs_periods_total": cpu.get("nr_periods"),
        "container_cpu_cfs_throttled_periods_total": cpu.get("nr_throttled"),
        "container_cpu_cfs_throttled_seconds_total": _scaled(cpu.get("throttled_time"), 1e-9),
        "container_memory_working_set_bytes": _less(used, memory.get("total_inactive_file")),
        "container_spec_memory_limit_bytes": limit if limit is not None and limit < _NO_LIMIT else None,
        "container_threads": _number(root / "pids/pids.current"),
    }


def _number(path: Path) -> float | None:
    """A file with one number; None if it is missing, or is `max`."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, float]:
    """A file of lines `name number`."""
    try:
        return {name: float(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    except OSError:
        return {}


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None else max(0.0, whole - (part or 0.0))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = exposition().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), _Handler).serve_forever()
