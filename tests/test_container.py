"""What a container does before and beside its server: deployment, the golden question, health, the cores it may use."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serving import health
from serving.bundle import Bundle, find_bundle, list_bundles
from serving.clients.wire import WIRES
from serving.container import canary
from serving.deploy import deploy
from serving.server_plan import SERVERS, ServerName
from serving.settings import _cpu_quota


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


def test_the_quota_of_both_cgroup_versions(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert tuple(map(float, _cpu_quota(tmp_path))) == (150000, 100000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cpu_quota(tmp_path) == ("max", "100000")
