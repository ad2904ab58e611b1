"""What a container does before and beside its server: deployment, the golden question, health, what it uses."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from bundle.errors import DeadlineExceededError, OverloadedError, TridentError, UnavailableError
from bundle.schemas import problem
from bundle.store import Bundle, find_bundle, list_bundles
from serving import cgroup
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, ServerName
from serving.container import top1_probe as health
from serving.container.__main__ import golden_request
from serving.container.publish import publish
from serving.deployment import Deployment
from serving.servers.server import server_class
from serving.settings import ServingSettings


def test_deploying_replaces_what_was_deployed(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> None:
    publish(Deployment((digits,)), tmp_path)
    first = find_bundle(None, tmp_path)
    assert first.manifest == digits.manifest
    place = first.path.stat()
    publish(Deployment((digits,)), tmp_path)  # nothing to do: servers that read it are not disturbed
    assert first.path.stat() == place
    publish(Deployment((other_weights,)), tmp_path)  # the same name and version from another training
    assert find_bundle("digits:1", tmp_path).manifest == other_weights.manifest
    publish(Deployment(()), tmp_path)
    assert list_bundles(tmp_path) == []


class FakeServer(BaseHTTPRequestHandler):
    """Answers every question with the class of `answer`, or refuses it as `refusal` says (status 0: not at all); and has
    a TorchServe's management.
    """

    answer: ClassVar[int]
    refusal: ClassVar[tuple[int, str] | None]
    model: ClassVar[object]
    seen: ClassVar["FakeServer"]
    over: ClassVar[threading.Event]

    @classmethod
    def reset(cls) -> None:
        cls.answer, cls.refusal, cls.model, cls.over = 0, None, [], threading.Event()

    def do_POST(self) -> None:
        FakeServer.seen = self
        self.image = self.rfile.read(int(self.headers["content-length"]))
        prediction = {"predictions": [{"label": "x", "class_id": FakeServer.answer, "probability": 1.0}]}
        status, text = FakeServer.refusal or (200, json.dumps(prediction))
        if status:
            self.respond(status, text)
        else:
            FakeServer.over.wait(60)

    def do_GET(self) -> None:
        assert self.path == "/models/digits/1"
        self.respond(200, json.dumps(FakeServer.model))

    def respond(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def server_url() -> Iterator[str]:
    FakeServer.reset()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    FakeServer.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def request_to(server: ServerName, url: str, bundle: Bundle, settings: ServingSettings) -> dict[str, Any]:
    """A golden request as the container's health check sends it, to the server at `url`."""
    made = server_class(server)(settings, Deployment((bundle,)), Path("unused"))
    request = golden_request(made, bundle)
    return request | {"url": request["url"].replace(made.endpoint.url, url)}


def overloaded(request: dict[str, Any]) -> bool:
    found = health.check(request)
    assert found is not None
    return found.overloaded


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Health in a folder of its own; what it would have ended."""
    calls: list[int] = []
    monkeypatch.setattr(health, "FOLDER", tmp_path)
    monkeypatch.setattr(health, "end_server", calls.append)
    return calls


@pytest.mark.parametrize("server", SERVERS)
def test_the_canary_is_the_servers_own_kind_of_request(
    server: ServerName, digits: Bundle, server_url: str, settings: ServingSettings
) -> None:
    changed = settings.model_copy(update={"api_keys": (SecretStr("key"),), "request_timeout_s": 7.0})
    question = request_to(server, server_url, digits, changed)
    FakeServer.answer = question["class_id"]
    assert health.check(question) is None
    assert FakeServer.seen.path == dialect_of(server).http("digits", 1).request(b"").path
    assert FakeServer.seen.headers["x-api-key"] == "key"
    assert FakeServer.seen.image == digits.golden_inputs()[0][1]
    assert question["timeout_s"] > 7
    FakeServer.answer += 1
    assert "wrong answer" in str(health.check(question))


def test_health_is_ready_and_ends_what_stays_broken(
    digits: Bundle, server_url: str, settings: ServingSettings, ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.main() == 1  # no questions yet: not ready
    question = request_to("fastapi", server_url, digits, settings)
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


def failures() -> int:
    return health.read_count(health.FOLDER / "failures")


@pytest.fixture
def was_ready(digits: Bundle, server_url: str, settings: ServingSettings, ended: list[int]) -> dict[str, Any]:
    """The question to a server that was ready, and has failed once since."""
    question = request_to("fastapi", server_url, digits, settings) | {"timeout_s": 0.2}
    (health.FOLDER / "canaries.json").write_text(json.dumps([question]))
    FakeServer.answer = question["class_id"]
    assert health.main() == 0
    FakeServer.refusal = (500, "Stub process 'digits_v1_preprocess_0_0' is not healthy.")
    assert health.main() == 1
    assert failures() == 1
    return question


def a_problem(error: type[TridentError]) -> tuple[int, str]:
    """As FastAPI answers it."""
    return error.status, problem(error.status, error.kind, error.title, "...").model_dump_json()


def from_triton(kind: str) -> tuple[int, str]:
    """As Triton passes on what its python models refuse."""
    return 503, json.dumps({"error": f"in ensemble 'digits_v1', {kind}: 256 images wait already"})


NO_WORKER = (
    503,
    json.dumps(
        {
            "code": 503,
            "type": "ServiceUnavailableException",
            "message": 'Model "digits" Version 1" has no worker to serve',
        }
    ),
)


@pytest.mark.parametrize(
    "refusal",
    [
        a_problem(OverloadedError),
        a_problem(UnavailableError),
        a_problem(DeadlineExceededError),
        from_triton(OverloadedError.kind),
        from_triton(DeadlineExceededError.kind),
    ],
)
def test_a_full_queue_is_no_failure(refusal: tuple[int, str], was_ready: dict[str, Any], ended: list[int]) -> None:
    FakeServer.refusal = refusal
    assert [health.main() for _ in range(health.FAILURES + 1)] == [0] * (health.FAILURES + 1)
    assert failures() == 1  # nor does it make up for one
    assert ended == []
    (health.FOLDER / "ready").unlink()
    assert health.main() == 1  # a server that never gave a golden answer is not ready


@pytest.mark.parametrize(
    "refusal",
    [
        (0, "no answer in time"),
        (400, "overloaded: "),
        (500, "Stub process 'digits_v1_preprocess_0_0' is not healthy."),
        (503, json.dumps({"code": 503, "type": "InternalServerException", "message": "Prediction failed"})),
        (503, json.dumps({"error": "Server is stopping, scheduler for model is not accepting new requests"})),
        NO_WORKER,
    ],
)
def test_other_refusals_are_failures(refusal: tuple[int, str], was_ready: dict[str, Any], ended: list[int]) -> None:
    FakeServer.refusal = refusal
    assert [health.main() for _ in range(health.FAILURES - 1)] == [1] * (health.FAILURES - 1)
    assert ended == [health.FAILURES]


@pytest.mark.parametrize("refusal", [NO_WORKER, (0, "waits in the queue")])
@pytest.mark.parametrize(
    ("status", "pending", "busy"), [("READY", 256, True), ("READY", 0, False), ("WORKER_STOPPED", 256, False)]
)
def test_torchserves_management_tells_a_full_queue_from_no_workers(
    refusal: tuple[int, str], status: str, pending: int, busy: bool, was_ready: dict[str, Any], server_url: str
) -> None:
    FakeServer.refusal = refusal
    FakeServer.model = [{"workers": [{"status": status}], "jobQueueStatus": {"pendingRequests": pending}}]
    found = health.check(was_ready | {"queue": f"{server_url}/models/digits/1"})
    assert found is not None
    assert found.overloaded == busy


@pytest.mark.parametrize("description", [[], {}, [{}], None])
def test_an_empty_description_is_no_overload(description: object, was_ready: dict[str, Any], server_url: str) -> None:
    FakeServer.refusal, FakeServer.model = NO_WORKER, description
    assert not overloaded(was_ready | {"queue": f"{server_url}/models/digits/1"})
    assert not overloaded(was_ready | {"queue": "http://127.0.0.1:9/models/digits/1"})


def test_torchserves_management_is_where_the_settings_say(digits: Bundle, settings: ServingSettings) -> None:
    port = settings.ports.torchserve_management
    request = request_to("torchserve", "http://0.0.0.0:8080", digits, settings)
    assert request["queue"].endswith(f":{port}/models/digits/1")


def test_a_queue_that_a_dead_stub_keeps_full_is_a_failure(was_ready: dict[str, Any]) -> None:
    FakeServer.refusal = None
    command = [sys.executable, "-c", "input()", "/opt/tritonserver/backends/python/triton_python_backend_stub"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as stub:
        assert health.main() == 0
        FakeServer.refusal = from_triton(OverloadedError.kind)
        assert health.main() == 0
        stub.kill()
        stub.communicate()
    assert health.main() == 1


def test_no_server_is_overloaded_for_ever(was_ready: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_OVERLOADED_CHECKS", 3)
    FakeServer.refusal = None
    for _ in range(2):  # a golden answer begins it anew
        assert health.main() == 0
        FakeServer.refusal = from_triton(OverloadedError.kind)
        assert [health.main() for _ in range(5)] == [0, 0, 0, 1, 1]
        assert failures() == 2
        FakeServer.refusal = None


def test_a_check_that_is_killed_has_failed(was_ready: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "check", killed)
    with pytest.raises(KeyboardInterrupt):
        health.main()
    assert failures() == 2


def test_a_count_that_was_cut_off_does_no_harm(was_ready: dict[str, Any]) -> None:
    (health.FOLDER / "failures").write_text("")
    assert health.main() == 1
    assert failures() == 1


def test_several_models_take_the_time_of_one(was_ready: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (health.FOLDER / "canaries.json").write_text(json.dumps([was_ready] * 3))
    together = threading.Barrier(3, timeout=5)

    def meet(_: object) -> None:
        together.wait()

    monkeypatch.setattr(health, "check", meet)
    assert health.main() == 0


@pytest.mark.parametrize("server", SERVERS)
def test_docker_waits_for_the_longest_check(server: ServerName) -> None:
    text = (Path(__file__).parents[2] / f"docker/{server}.Dockerfile").read_text()
    (timeout_s,) = map(int, re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", text, re.MULTILINE))
    longest = ServingSettings(request_timeout_s=600).request_timeout_s + 1 + health.QUEUE_TIMEOUT_S
    assert timeout_s > longest
    with pytest.raises(ValueError, match="request_timeout_s"):
        ServingSettings(request_timeout_s=601)


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
