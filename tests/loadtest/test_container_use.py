"""The use of a server's container in the load test: read, subtracted, written into the report."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.load import ClosedLoop
from loadtest.machine.containers import ContainerUse
from loadtest.machine.resources import InContainer, Meter, watching
from loadtest.report import write_report
from tests.loadtest.lab import recording, resources, result, run


class Exporter(ThreadingHTTPServer):
    """What `serving/cgroup.py` answers in a container."""

    values: dict[str, float]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Exporter

    def do_GET(self) -> None:
        body = "".join(f"{name} {value}\n" for name, value in self.server.values.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    server = Exporter(("127.0.0.1", 0), _Handler)
    server.values = {
        "container_cpu_usage_seconds_total": 10.0,
        "container_cpu_cfs_periods_total": 100,
        "container_cpu_cfs_throttled_periods_total": 5,
        "container_cpu_cfs_throttled_seconds_total": 0.5,
        "container_memory_working_set_bytes": 200 * 2**20,
        "container_spec_memory_limit_bytes": 3 * 2**30,
        "container_spec_cpu_quota": 150000,
        "container_spec_cpu_period": 100000,
        "container_threads": 12,
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_a_run_took_of_its_container(exporter: Exporter) -> None:
    meters: dict[str, Meter] = {"fastapi": InContainer(exporter.url), "gone": InContainer("http://127.0.0.1:9")}
    with watching("fastapi", meters, ()) as watch:
        exporter.values |= {
            "container_cpu_usage_seconds_total": 12.5,
            "container_cpu_cfs_periods_total": 130,
            "container_cpu_cfs_throttled_periods_total": 25,
            "container_cpu_cfs_throttled_seconds_total": 2.0,
        }
    assert watch.use is not None
    assert watch.use.cpu_s == 2.5
    assert (watch.use.memory_mib, watch.use.threads) == (200, 12)
    assert watch.use.idle_cores == {}  # of the other one nothing is known
    assert watch.use.container == ContainerUse(
        cpu_limit=1.5, memory_limit_mib=3072, periods=30, throttled_periods=20, throttled_s=1.5
    )


def test_a_container_that_was_started_anew_gives_no_figures(exporter: Exporter) -> None:
    with watching("fastapi", {"fastapi": InContainer(exporter.url)}, ()) as watch:
        exporter.values["container_cpu_usage_seconds_total"] = 0.3
    assert watch.use is None


def test_nor_does_one_whose_cgroup_cannot_be_read(exporter: Exporter) -> None:
    exporter.values.clear()
    with watching("fastapi", {"fastapi": InContainer(exporter.url)}, ()) as watch:
        pass
    assert watch.use is None


def test_the_report_has_a_table_of_the_containers(tmp_path: Path) -> None:
    throttled = ContainerUse(cpu_limit=1.5, memory_limit_mib=3072, periods=30, throttled_periods=20, throttled_s=1.5)
    free = ContainerUse(cpu_limit=None, memory_limit_mib=None, periods=0, throttled_periods=0, throttled_s=0)
    loop = ClosedLoop(concurrency=4, duration_s=1)
    runs = [
        run(name, loop, round_, recording([0.01] * 700), "sweep", resources=resources(cpu_s=1.25, container=use))
        for name, use in (("fastapi", throttled), ("triton", free))
        for round_ in range(2)
    ]
    write_report(result(runs=tuple(runs)), tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| fastapi | sweep, concurrency 4 | 2.50 | 1.25 of 1.5 | 200 of 3072 | 67% (40 of 60) | 3.00 |" in lines
    assert "| triton | sweep, concurrency 4 | 2.50 | 1.25 | 200 | - | 0.00 |" in lines
    assert "Containers" in (tmp_path / "report.html").read_text()
    write_report(result(), tmp_path)
    assert "Containers" not in (tmp_path / "report.html").read_text()
