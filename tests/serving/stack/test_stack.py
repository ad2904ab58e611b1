"""Supervision without the real servers."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from bundle.errors import DeploymentError
from serving.clients.endpoint import Endpoint
from serving.processes import adopt_orphans
from serving.settings import Ports, ServingSettings
from serving.stack.child import Child
from serving.stack.control import current_stack, start_stack, stop_stack
from serving.stack.endpoints import find_endpoints, parse_url, server_names
from serving.stack.ports import check_ports_free, free_ports, ports_of
from serving.stack.state import ServerState, StackState, read_state, write_state
from tests.waiting import wait_until

# A server that ignores SIGTERM and has a child that does so too.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{more}
print("up", flush=True)
time.sleep(60)
"""
GRANDCHILD = (
    "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'])"
)


def alive(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


async def start(tmp_path: Path, code: str) -> Child:
    log = tmp_path / "logs" / "x.log"
    child = await Child.start([sys.executable, "-c", code], os.environ, tmp_path, log)
    for _ in range(200):
        if b"up" in log.read_bytes():
            return child
        await asyncio.sleep(0.05)
    raise AssertionError("it did not start")


def test_stopping_kills_the_whole_group(tmp_path: Path) -> None:
    async def run() -> None:
        child = await start(tmp_path, STUBBORN.format(more=GRANDCHILD))
        assert len(alive(child.pid)) == 2
        await child.stop(timeout_s=0.2)
        assert alive(child.pid) == []
        assert child.exit_code == -signal.SIGKILL

    asyncio.run(run())


def test_a_leader_that_died_leaves_no_orphans(tmp_path: Path) -> None:
    async def run() -> None:
        adopt_orphans()
        child = await start(tmp_path, STUBBORN.format(more=GRANDCHILD))
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        assert len(alive(child.pid)) == 1
        await child.stop(timeout_s=1)
        assert alive(child.pid) == []

    asyncio.run(run())


def test_a_server_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, pathlib, sys
from serving.stack.child import Child
async def run():
    child = await Child.start([sys.executable, "-c", "import time; time.sleep(60)"], os.environ,
    pathlib.Path({str(tmp_path)!r}),
                              pathlib.Path({str(tmp_path / "log")!r}))
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert psutil.pid_exists(pid)
        supervisor.kill()
    wait_until(lambda: not alive(pid), 5)


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports()
    numbers = list(ports.model_dump().values())
    assert len(set(numbers)) == len(numbers)
    check_ports_free(["fastapi", "torchserve", "triton"], ports, "127.0.0.1")


def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        ports = free_ports().model_copy(update={"triton_grpc": number})
        with pytest.raises(DeploymentError, match=rf"port {number} .*TRIDENT_PORTS__TRITON_GRPC.*--free-ports"):
            check_ports_free(["fastapi", "triton"], ports, "127.0.0.1")
        check_ports_free(["fastapi", "torchserve"], ports, "127.0.0.1")  # not theirs


def test_every_port_belongs_to_a_server() -> None:
    owned = [name for server in ("fastapi", "torchserve", "triton") for name in ports_of(server, Ports())]
    assert sorted(owned) == sorted(Ports.model_fields)


def test_state_is_read_as_written(tmp_path: Path, settings: ServingSettings) -> None:
    endpoint = Endpoint(server="fastapi", url="http://127.0.0.1:1", metrics_url="http://127.0.0.1:1/metrics")
    state = StackState(
        pid=1,
        process_created=0,
        settings=settings,
        bundles=[tmp_path],
        servers={"fastapi": ServerState(phase="ready", endpoint=endpoint), "triton": ServerState(phase="starting")},
    )
    write_state(state, tmp_path)
    assert read_state(tmp_path) == state
    assert state.endpoints() == [endpoint]
    assert not state.ready
    assert current_stack(tmp_path) is None  # pid 1 was not created at 0: somebody else's process is not our supervisor
    assert stop_stack(tmp_path) is False


def test_no_state_and_a_damaged_one(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    (tmp_path / "state.json").write_text("{")
    assert read_state(tmp_path) is None


@pytest.mark.timeout(60)
def test_a_server_that_cannot_start_is_explained_and_nothing_stays(tmp_path: Path, settings: ServingSettings) -> None:
    broken = settings.model_copy(update={"triton_python": tmp_path / "none"})
    with pytest.raises(DeploymentError, match=r"triton failed: Triton's environment is missing"):
        start_stack(broken, ["triton"], tmp_path, choose_ports=True)
    assert current_stack(tmp_path) is None


@pytest.fixture
def taken(settings: ServingSettings) -> Iterator[ServingSettings]:
    """Settings with a port that is in use: the next thing after `host` that is looked at, so that nothing starts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = free_ports().model_copy(update={"fastapi": server.getsockname()[1]})
        yield settings.model_copy(update={"ports": ports})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a-name"])
def test_nothing_listens_beyond_this_machine_without_keys(host: str, tmp_path: Path, taken: ServingSettings) -> None:
    with pytest.raises(DeploymentError, match=rf"host = {host} .*set api_keys, or trust_network"):
        start_stack(taken.model_copy(update={"host": host}), ["fastapi"], tmp_path)


@pytest.mark.parametrize(
    "allowed",
    [
        {"host": "0.0.0.0", "api_keys": (SecretStr("key"),)},
        {"host": "0.0.0.0", "trust_network": True},
        {"host": "127.0.0.1"},
        {"host": "localhost"},
    ],
)
def test_with_keys_or_trust_it_may_and_on_loopback_always(
    allowed: dict[str, object], tmp_path: Path, taken: ServingSettings
) -> None:
    with pytest.raises(DeploymentError, match="already in use"):
        start_stack(taken.model_copy(update=allowed), ["fastapi"], tmp_path)


def test_server_names() -> None:
    assert server_names("all") == ["fastapi", "torchserve", "triton"]
    assert server_names("triton, fastapi") == ["fastapi", "triton"]
    with pytest.raises(DeploymentError, match="'flask'"):
        server_names("flask")


def test_addresses_by_hand(bundles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse_url("triton=http://host:8000/").url == "http://host:8000"
    whole = parse_url("triton=http://host:8000,host:8001,http://host:8002/m,http://host:9101")
    assert (whole.grpc, whole.metrics_url, whole.container_url) == (
        "host:8001",
        "http://host:8002/m",
        "http://host:9101",
    )
    short = parse_url("fastapi=http://host:8000,,,http://host:9101")
    assert (short.grpc, short.metrics_url, short.container_url) == (
        None,
        "http://host:8000/metrics",
        "http://host:9101",
    )
    for wrong in ("http://host", "flask=http://host", "triton=host:8000", "triton=http://host,,,,"):
        with pytest.raises(DeploymentError, match="SERVER=URL"):
            parse_url(wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeploymentError, match="trident up"):
        find_endpoints(ServingSettings(), "all", None, None)
