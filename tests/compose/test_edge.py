"""What the edge keeps away from the servers: limits of size, type, time and number, and the management interfaces."""

import socket

import httpx
import pytest

from serving.clients.endpoint import SERVERS
from tests.compose.composed import BINARY, IMAGE, PATHS, Composed, ask, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.usefixtures("undisturbed")
def test_refused_at_the_edge(edge: httpx.Client, server: str) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert ask(edge, server, bytes(6 * 2**20), form).status_code == 415
    disguised = {"content-type": "APPLICATION/X-WWW-Form-Urlencoded; x=image/png"}
    assert ask(edge, server, bytes(6 * 2**20), disguised).status_code == 415
    assert edge.post(PATHS[server], content=IMAGE, headers={"content-type": ""}).status_code == 415
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
            slow.append(socket.create_connection((host, int(port)), timeout=60))
            slow[-1].sendall(head.encode())
        return ask(edge, server).status_code == 429

    try:
        wait_for(flooded)
        refused = ask(edge, server)
        if refused.status_code == 429:
            assert refused.headers["retry-after"] == "1"
        for sock in slow:
            assert hung_up(sock)
    finally:
        for sock in slow:
            sock.close()
    wait_for(lambda: ask(edge, server).status_code == 200)


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


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, with or without a word."""
    try:
        return sock.recv(4096)[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 429")
    except ConnectionResetError:
        return True
