"""`docker compose up` from nothing, as its user gets it: answers, proof, report, refusals, recovery, metrics, no trace."""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from serving.server_plan import SERVERS, ServerName
from tests.composed import ROOT, Composed, composed, engine_fault

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

PATHS = {
    "fastapi": "/predict",
    "torchserve": "/torchserve/predictions/digits",
    "triton": "/triton/v2/models/digits/infer",
}
BINARY = {"content-type": "application/octet-stream", "inference-header-content-length": "0"}
PICTURE = (ROOT / "tests/digit.png").read_bytes()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    fault = engine_fault()
    if fault:
        pytest.skip(fault)
    with composed(tmp_path_factory.mktemp("compose")) as running:
        yield running


@pytest.fixture(scope="module")
def edge(stack: Composed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.edge, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def undisturbed(stack: Composed, edge: httpx.Client) -> Iterator[None]:
    """What happens in the test must not end a server, and all answer afterwards."""
    before = {server: stack.container(server)["State"]["StartedAt"] for server in SERVERS}
    yield
    for server in SERVERS:
        assert ask(edge, server).status_code == 200, server
        assert stack.container(server)["State"]["StartedAt"] == before[server], f"{server} was restarted"


def ask(edge: httpx.Client, server: str, content: bytes = PICTURE, **headers: str) -> httpx.Response:
    return edge.post(PATHS[server], content=content, headers=BINARY | headers)


# --- it works


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_answers_at_the_edge(edge: httpx.Client, server: str) -> None:
    response = ask(edge, server)
    assert response.status_code == 200
    assert re.search(r'"class_id":\s*\d', response.text)


def test_form_and_page_at_the_edge(edge: httpx.Client) -> None:
    assert edge.post("/predict", files={"file": ("digit.png", PICTURE, "image/png")}).status_code == 200
    assert "swagger" in edge.get("/docs").text
    assert edge.get("/v2/health/ready").status_code == 200


def test_the_servers_agree(stack: Composed) -> None:
    shown = stack("run", "--rm", "loadtest", "verify")
    assert shown.count(" ok ") >= 6 * len(SERVERS) - 1, shown
    assert "FAILED" not in shown


def test_a_load_test_writes_its_report(stack: Composed, edge: httpx.Client) -> None:
    short = ("--duration-s", "1", "--warmup-s", "0.3", "--warmup-max-s", "1", "--rounds", "1", "--concurrency", "4")
    shown = stack(
        "run", "--rm", "loadtest", "bench", *short, check=False
    )  # 1 if the machine was too busy to measure on
    found = re.search(r"report: /app/artifacts/results/(\S+)/report.html", shown)
    assert found, shown
    assert "<html" in edge.get(f"/reports/{found[1]}/report.html").text
    lanes = json.loads(edge.get(f"/reports/{found[1]}/result.json").text)["lanes"]
    assert len(lanes) == len(SERVERS)
    assert not any(lane["faults"] for lane in lanes)


def test_locusts_master_and_four_workers(stack: Composed) -> None:
    stack("--profile", "locust", "up", "-d", "--wait", "--scale", "loadtest-worker=4")
    with httpx.Client(base_url=stack.locust, trust_env=False) as locust:
        wait_for(lambda: len(locust.get("/stats/requests").json()["workers"]) == 4)
        users = {"user_count": 8, "spawn_rate": 8, "host": "http://fastapi:8000"}
        assert locust.post("/swarm", data=users).json()["success"]
        wait_for(lambda: locust.get("/stats/requests").json()["total_rps"] > 0)
        wait_for(lambda: value(stack, "locust_requests_total") > 0 and value(stack, "locust_users") == 8)
        total = locust.get("/stats/requests").json()
        assert {worker["state"] for worker in total["workers"]} == {"running"}
        assert total["fail_ratio"] == 0
        locust.get("/stop")


# --- metrics


def queries() -> list[tuple[str, str]]:
    """Every expression of dashboards, rules and alerts, and where it stands."""
    found = []
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((ROOT / "docker/prometheus" / name).read_text())["groups"]:
            for rule in group["rules"]:
                # an alert's condition is false, but its series must be there: `> bool` gives 0 instead of nothing
                expression = (
                    re.sub(r" ([<>])=? (?=[\d.]+\s*$)", r" \1 bool ", rule["expr"]) if "alert" in rule else rule["expr"]
                )
                found.append((f"{name}: {rule.get('record') or rule['alert']}", expression))
    for path in sorted((ROOT / "docker/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.name}: {panel['title']}", target["expr"]) for target in panel.get("targets", [])]
    return found


def test_every_query_returns_data(stack: Composed, edge: httpx.Client) -> None:
    assert len(queries()) > 40
    until = time.monotonic() + 12
    while time.monotonic() < until:  # two scrapes under load
        for server in SERVERS:
            ask(edge, server)
            ask(edge, server, b"no picture")
    missing: list[str] = []

    def all_there() -> bool:
        missing[:] = [f"{where}: {expression}" for where, expression in queries() if not stack.query(expression)]
        return not missing

    try:
        wait_for(all_there, timeout_s=90)
    except AssertionError:
        pytest.fail("no data:\n" + "\n".join(missing))
    recorded = {(r["metric"]["__name__"], r["metric"]["server"]) for r in stack.query('{__name__=~"server:.+"}')}
    names = {name for name, _ in recorded}
    assert len(names) >= 8
    assert recorded == {(name, server) for name in names for server in SERVERS}, "the three have not the same series"


def test_promtool_accepts_configuration_and_rules(stack: Composed) -> None:
    shown = stack(
        "exec", "-T", "prometheus", "promtool", "check", "config", "--lint-fatal", "/etc/prometheus/prometheus.yml"
    )
    assert "FAILED" not in shown
    targets = httpx.get(f"{stack.prometheus}/api/v1/targets").json()["data"]["activeTargets"]
    assert {t["labels"].get("server") for t in targets if t["health"] == "up"} >= set(SERVERS)


# --- what the edge keeps away


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.usefixtures("undisturbed")
def test_refused_at_the_edge(edge: httpx.Client, server: str) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert ask(edge, server, bytes(6 * 2**20), **form).status_code == 415
    assert (
        ask(
            edge, server, bytes(6 * 2**20), **{"content-type": "APPLICATION/X-WWW-Form-Urlencoded; x=image/png"}
        ).status_code
        == 415
    )
    assert edge.post(PATHS[server], content=PICTURE, headers={"content-type": ""}).status_code == 415
    large = ask(edge, server, bytes(11 * 2**20))
    assert (large.status_code, large.json()["status"]) == (413, 413)
    assert large.headers["content-type"] == "application/problem+json"
    chunks = (bytes(2**20) for _ in range(11))
    assert edge.post(PATHS[server], content=chunks, headers=BINARY).status_code == 413


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.usefixtures("undisturbed")
def test_the_slow_and_the_flood(stack: Composed, edge: httpx.Client, server: str) -> None:
    """Half-sent requests fill the allowance of their address; more is 429; the pause they may make is bounded."""
    limit = int(stack.environment["EDGE_CONNECTIONS"])
    host, port = stack.edge.removeprefix("http://").split(":")
    head = f"POST {PATHS[server]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nx"
    slow: list[socket.socket] = []

    def flooded() -> bool:
        for _ in range(limit):
            slow.append(socket.create_connection((host, int(port)), timeout=30))
            slow[-1].sendall(head.encode())
        return ask(edge, server).status_code == 429

    try:
        wait_for(flooded, timeout_s=5)
        refused = ask(edge, server)
        if refused.status_code == 429:
            assert refused.headers["retry-after"] == "1"
        started = time.monotonic()
        for sock in slow:
            assert hung_up(sock)
        assert time.monotonic() - started < 20
    finally:
        for sock in slow:
            sock.close()
    wait_for(lambda: ask(edge, server).status_code == 200, timeout_s=10)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/digits/unload",
        "/torchserve/models",
        "/triton/v2/repository/models/digits/unload",
        "/triton/v2/systemsharedmemory/status",
        "/triton/v2/trace/setting",
        "/triton/metrics",
        "/metrics",
    ],
)
def test_management_is_not_passed_on(edge: httpx.Client, path: str) -> None:
    assert edge.post(path, json={}).status_code == 404
    assert edge.get(path).status_code == 404


# --- containers


def test_containers_can_do_little(stack: Composed) -> None:
    services = {"edge", "prometheus", *SERVERS}
    for service in services:
        container = stack.container(service)
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), service
        status = stack("exec", "-T", service, "cat", "/proc/1/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), service
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), service
        assert not re.search(r"^Uid:\s+0\s", status, re.MULTILINE), service
        assert "Read-only file system" in stack("exec", "-T", service, "touch", "/file", check=False), service
    limits = {
        server: {
            key: stack.container(server)["HostConfig"][key] for key in ("NanoCpus", "Memory", "ShmSize", "CpusetCpus")
        }
        for server in SERVERS
    }
    assert len({json.dumps(limit) for limit in limits.values()}) == 1, limits


def test_only_edge_and_dashboards_are_published(stack: Composed) -> None:
    published = {}
    for service in ("edge", "prometheus", *SERVERS):
        bindings = stack.container(service)["HostConfig"]["PortBindings"] or {}
        published[service] = {binding["HostIp"] for each in bindings.values() for binding in each}
    assert published == {"edge": {"127.0.0.1"}, "prometheus": {"127.0.0.1"}} | {server: set() for server in SERVERS}
    # TorchServe's management answers inside its own container only
    code = "import urllib.request; urllib.request.urlopen('http://torchserve:8081/models', timeout=3)"
    assert "Connection refused" in stack("run", "--rm", "--entrypoint", "python", "loadtest", "-c", code, check=False)


def test_a_second_start_trains_nothing(stack: Composed) -> None:
    stack("up", "-d", "--wait")
    assert "nothing to train" in stack("logs", "training")
    assert "is deployed already" in stack("logs", "deploy")


# --- recovery


@pytest.mark.parametrize("killed", SERVERS)
def test_a_killed_server_comes_back_and_the_others_do_not_notice(stack: Composed, killed: ServerName) -> None:
    others = [server for server in SERVERS if server != killed]
    before = {server: stack.container(server)["State"]["StartedAt"] for server in SERVERS}
    with Load(stack.edge) as load:
        wait_for(lambda: all(load.codes[server][200] > 20 for server in SERVERS))
        kill(stack, killed)
        wait_for(lambda: load.codes[killed][503] > 0)
        wait_for(lambda: stack.container(killed)["State"]["StartedAt"] != before[killed])
        stack.until_healthy(killed)
        answered = load.codes[killed][200]
        wait_for(lambda: load.codes[killed][200] > answered + 20)
    for server in others:
        assert set(load.codes[server]) == {200}, (server, load.codes[server])
        assert stack.container(server)["State"]["StartedAt"] == before[server], server


def test_the_report_shows_the_gap(stack: Composed, edge: httpx.Client) -> None:
    arguments = ("--scenario", "sweep", "--concurrency", "4", "--duration-s", "20", "--rounds", "1")
    url = "fastapi=http://fastapi:8000"
    shown: list[str] = []
    bench = threading.Thread(
        target=lambda: shown.append(stack("run", "--rm", "loadtest", "bench", "--url", url, *arguments, check=False))
    )
    calm = value(stack, 'trident_requests_total{code="200"}')
    bench.start()
    wait_for(lambda: value(stack, 'sum(trident_requests_total{code="200"})') > calm + 300)
    time.sleep(12)  # warming up takes 10 s at most, the run 20 s
    kill(stack, "fastapi")
    bench.join()
    found = re.search(r"artifacts/results/(\S+)/report.html", shown[0])
    assert found, shown[0]
    runs = json.loads(edge.get(f"/reports/{found[1]}/result.json").text)["runs"]
    assert sum(run["recording"]["failed"] for run in runs) > 0, "the report knows of no failed request"
    stack.until_healthy("fastapi")


def test_down_leaves_nothing(stack: Composed) -> None:
    stack("--profile", "locust", "down", "-v")
    assert stack.leftovers() == []


# --- aids


class Load:
    """One steady stream of requests per server through the edge; counts the answers by status."""

    def __init__(self, url: str) -> None:
        self.codes: dict[str, Counter[int]] = {server: Counter() for server in SERVERS}
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server,)) for server in SERVERS]

    def _run(self, server: str) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as edge:
            while not self._stop.is_set():
                self.codes[server][ask(edge, server).status_code] += 1
                time.sleep(0.01)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, with or without a word."""
    try:
        return sock.recv(4096)[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 429")
    except ConnectionResetError:
        return True


def kill(stack: Composed, server: str) -> None:
    """SIGKILL to all that runs in the container, as the kernel does when memory is short. (After `docker kill`, the engine
    takes the end for its operator's wish, and restarts nothing.)
    """
    stack("exec", "-T", server, "python3", "-c", "import os; os.kill(-1, 9)", check=False)


def value(stack: Composed, expression: str) -> float:
    """The sum of what a query gives; 0 if it gives nothing."""
    return sum(float(result["value"][1]) for result in stack.query(expression))


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.25)
