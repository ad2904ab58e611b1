"""What a container does before and beside its server: deployment, the golden question, health, what it uses."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import cgroup, health
from serving.bundle import Bundle, find_bundle, list_bundles
from serving.clients.wire import WIRES
from serving.container import canary
from serving.deploy import deploy
from serving.server_plan import SERVERS, ServerName


def test_deploying_replaces_what_was_deployed(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> None:
    deploy([digits], tmp_path)
    first = find_bundle(None, tmp_path)
    assert first.manifest == digits.manifest
    place = first.path.stat()
    deploy([digits], tmp_path)  # nothing to do: servers that read it are not disturbed
    assert first.path.stat() == place
    deploy([other_weights], tmp_path)  # the same name and version from another training
    assert find_bundle("digits:1", tmp_path).manifest == other_weights.manifest
    deploy([], tmp_path)
    assert list_bundles(tmp_path) == []


class FakeServer(BaseHTTPRequestHandler):
    """Answers every question with the class of `answer`."""

    answer = 0
    seen: "FakeServer | None" = None

    def do_POST(self) -> None:
        FakeServer.seen = self
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"predictions": [{"label": "x", "class_id": FakeServer.answer, "probability": 1.0}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def server_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakeServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Health in a folder of its own; what it would have ended."""
    calls: list[int] = []
    monkeypatch.setattr(health, "FOLDER", tmp_path)
    monkeypatch.setattr(health, "end_server", calls.append)
    return calls


@pytest.mark.parametrize("server", SERVERS)
def test_the_canary_is_the_servers_own_kind_of_request(server: ServerName, digits: Bundle, server_url: str) -> None:
    question = canary(server, server_url, digits, "key")
    FakeServer.answer = question["class_id"]
    assert health.fault(question) == ""
    assert FakeServer.seen is not None
    assert FakeServer.seen.path == WIRES[server]("digits", 1).request(b"").path
    assert FakeServer.seen.headers["x-api-key"] == "key"
    FakeServer.answer += 1
    assert "wrong answer" in health.fault(question)


def test_health_is_ready_and_ends_what_stays_broken(
    digits: Bundle, server_url: str, ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.main() == 1  # no questions yet: not ready
    question = canary("fastapi", server_url, digits, "")
    (health.FOLDER / "canaries.json").write_text(json.dumps([question]))
    FakeServer.answer = question["class_id"] + 1
    assert [health.main() for _ in range(health.FAILURES + 1)] == [1] * (health.FAILURES + 1)
    assert ended == []  # a server that was never ready is left to its start period
    FakeServer.answer -= 1
    assert health.main() == 0
    FakeServer.answer += 1
    assert [health.main() for _ in range(health.FAILURES - 1)] == [1] * (health.FAILURES - 1)
    FakeServer.answer -= 1
    assert health.main() == 0  # it came back by itself: counting begins anew
    FakeServer.answer += 1
    for _ in range(health.FAILURES + 1):
        assert health.main() == 1
    assert ended == [health.FAILURES, health.FAILURES + 1]
    assert "wrong answer" in capsys.readouterr().out


V2 = {
    "cgroup.controllers": "cpuset cpu io memory pids",
    "cpu.stat": "usage_usec 5250000\nuser_usec 4000000\nsystem_usec 1250000\nnr_periods 400\nnr_throttled 90\n"
    "throttled_usec 2500000\nnr_bursts 0\nburst_usec 0",
    "cpu.max": "150000 100000",
    "memory.current": "209715200",
    "memory.stat": "anon 104857600\nfile 62914560\ninactive_file 52428800\nactive_file 10485760",
    "memory.max": "3221225472",
    "pids.current": "42",
}
V1 = {
    "cpuacct/cpuacct.usage": "5250000000",
    "cpu/cpu.stat": "nr_periods 400\nnr_throttled 90\nthrottled_time 2500000000\nnr_bursts 0\nburst_time 0",
    "cpu/cpu.cfs_quota_us": "150000",
    "cpu/cpu.cfs_period_us": "100000",
    "memory/memory.usage_in_bytes": "209715200",
    "memory/memory.stat": "cache 62914560\nrss 104857600\ninactive_file 1\ntotal_inactive_file 52428800",
    "memory/memory.limit_in_bytes": "3221225472",
    "pids/pids.current": "42",
}


def kernel_files(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content + "\n")
    return root


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_a_containers_use_by_both_cgroup_versions(tmp_path: Path, files: dict[str, str]) -> None:
    root = kernel_files(tmp_path, files)
    assert cgroup.usage(root) == {
        "container_cpu_usage_seconds_total": pytest.approx(5.25),
        "container_cpu_cfs_periods_total": 400,
        "container_cpu_cfs_throttled_periods_total": 90,
        "container_cpu_cfs_throttled_seconds_total": pytest.approx(2.5),
        "container_memory_working_set_bytes": 150 * 2**20,
        "container_spec_memory_limit_bytes": 3 * 2**30,
        "container_threads": 42,
        "container_spec_cpu_quota": 150000,
        "container_spec_cpu_period": 100000,
    }
    assert cgroup.usage(root).keys() == cgroup.HELP.keys()
    shown = {
        sample.name for family in text_string_to_metric_families(cgroup.exposition(root)) for sample in family.samples
    }
    assert shown == cgroup.HELP.keys()


NO_LIMITS_V2 = {"cpu.max": "max 100000", "memory.max": "max"}
NO_LIMITS_V1 = {"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9223372036854771712"}


@pytest.mark.parametrize("files", [V2 | NO_LIMITS_V2, V1 | NO_LIMITS_V1], ids=["v2", "v1"])
def test_a_limit_that_is_none_is_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    root = kernel_files(tmp_path, files)
    assert cgroup.cpu_limit(root) is None
    assert not {name for name in cgroup.usage(root) if "spec_cpu_quota" in name or "memory_limit" in name}


def test_where_no_cgroup_can_be_read_there_are_no_values(tmp_path: Path) -> None:
    assert cgroup.usage(tmp_path) == {}
    assert cgroup.cpu_limit(tmp_path) is None
