"""`docker compose up` from nothing, as its user gets it: answers, proof, report, metrics, containers."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import yaml

from serving.clients.endpoint import SERVERS
from tests.compose.composed import IMAGE, ROOT, Composed, ask, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
ADDRESSES = {"fastapi": "http://fastapi:8000", "torchserve": "http://torchserve:8080", "triton": "http://triton:8500"}

# --- it works


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_answers_at_the_edge(edge: httpx.Client, server: str) -> None:
    response = ask(edge, server)
    assert response.status_code == 200
    assert re.search(r'"class_id":\s*\d', response.text)


def test_form_and_page_at_the_edge(edge: httpx.Client) -> None:
    assert edge.post("/predict", files={"file": ("digit.png", IMAGE, "image/png")}).status_code == 200
    assert "swagger" in edge.get("/docs").text
    assert edge.get("/v2/health/ready").status_code == 200


def test_the_servers_agree(stack: Composed) -> None:
    shown = stack("run", "--rm", "loadtest", "verify")
    assert shown.count(" ok ") >= 6 * len(SERVERS) - 1, shown
    assert "FAILED" not in shown


@contextmanager
def cpu_limit(stack: Composed, server: str, cores: str) -> Iterator[None]:
    """Another CPU limit for a running container."""
    container = stack.container(server)
    before = str(container["HostConfig"]["NanoCpus"] / 1e9)
    for_now, again = (["docker", "update", "--cpus", value, container["Id"]] for value in (cores, before))
    subprocess.run(for_now, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(again, check=True, capture_output=True)


def test_a_load_test_writes_its_report_with_the_use_of_the_containers(stack: Composed, edge: httpx.Client) -> None:
    short: tuple[str, ...] = ("--duration-s", "1", "--rounds", "1", "--concurrency", "4", "--initial-warmup-s", "0")
    short += ("--warmup-s", "0.3", "--warmup-max-s", "1")
    with cpu_limit(stack, "fastapi", "0.3"):
        # 1 if the machine was too busy to measure on
        shown = stack("run", "--rm", "loadtest", "bench", *short, check=False)
    found = re.search(r"report: /app/artifacts/results/(\S+)/report.html", shown)
    assert found, shown
    assert "<html" in edge.get(f"/reports/{found[1]}/report.html").text
    result: dict[str, Any] = json.loads(edge.get(f"/reports/{found[1]}/result.json").text)
    assert len(result["lanes"]) == len(SERVERS)
    assert not any(lane["faults"] for lane in result["lanes"])
    assert {run["lane"] for run in result["runs"]} == set(SERVERS)
    for run in result["runs"]:
        use = run["resources"]
        assert use["cpu_s"] > 0
        assert use["memory_mib"] > 10
        assert use["threads"] > 1
        assert set(use["idle_cores"]) == {f"{name} at {url}" for name, url in ADDRESSES.items() if name != run["lane"]}
        container = use["container"]
        assert container["memory_limit_mib"] == 3 * 1024
        assert container["periods"] > 0
        if run["lane"] == "fastapi":
            assert container["cpu_limit"] == pytest.approx(0.3)
            assert container["throttled_periods"] > 0
            assert container["throttled_s"] > 0


@pytest.fixture(scope="module")
def locust(stack: Composed) -> Iterator[httpx.Client]:
    """Locust's master, with four workers that ask FastAPI."""
    stack("--profile", "locust", "up", "-d", "--wait", "--scale", "loadtest-worker=4")
    with httpx.Client(base_url=stack.locust, timeout=30, trust_env=False) as client:
        wait_for(lambda: len(client.get("/stats/requests").json()["workers"]) == 4)
        users = {"user_count": 8, "spawn_rate": 8, "host": "http://fastapi:8000"}
        assert client.post("/swarm", data=users).json()["success"]
        wait_for(lambda: client.get("/stats/requests").json()["total_rps"] > 0)
        yield client
        client.get("/stop")
    stack("--profile", "locust", "rm", "--stop", "--force", "loadtest-worker", "loadtest-master")


def test_locusts_master_and_four_workers(stack: Composed, locust: httpx.Client) -> None:
    wait_for(lambda: stack.value("locust_requests_total") > 0 and stack.value("locust_users") == 8)
    total = locust.get("/stats/requests").json()
    assert {worker["state"] for worker in total["workers"]} == {"running"}
    assert total["fail_ratio"] == 0


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


@pytest.mark.usefixtures("locust")
def test_every_query_returns_data(stack: Composed, edge: httpx.Client) -> None:
    assert len(queries()) > 40
    missing: list[str] = []

    def all_there() -> bool:
        for server in SERVERS:  # rates need requests between two scrapes
            ask(edge, server)
            ask(edge, server, b"no image")
        missing[:] = [f"{where}: {expression}" for where, expression in queries() if not stack.query(expression)]
        return not missing

    wait_for(all_there, shown=lambda: "no data:\n" + "\n".join(missing))
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
        status = stack("exec", "-T", service, "sh", "-c", "cat /proc/1/status; touch /file", check=False)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), service
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), service
        assert not re.search(r"^Uid:\s+0\s", status, re.MULTILINE), service
        assert "Read-only file system" in status, service
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
    assert "is published already" in stack("logs", "deploy")
