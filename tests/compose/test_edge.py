"""What the edge keeps away from the servers, and whom it lets in: limits, API keys, TLS."""

import socket
import ssl
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from serving.clients.endpoint import SERVERS
from tests.compose.composed import BINARY, IMAGE, PATHS, Composed, ask, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
KEYS = ("first.key+/=", "second-key_~")


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


@pytest.fixture(scope="module")
def guarded(stack: Composed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The stack with API keys and a certificate; a client that trusts it."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "keys").write_text("\n".join(KEYS) + "\n")
    certificate = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    certificate += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "keyUsage=digitalSignature",
    ]
    subprocess.run(
        ["openssl", "req", *certificate, "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    for file in folder.iterdir():
        file.chmod(0o644)  # for uid 10001
    names = {"API_KEYS_FILE": "keys", "TLS_CERTIFICATE_FILE": "certificate.pem", "TLS_KEY_FILE": "key.pem"}
    before = stack.environment
    stack.environment = before | {variable: str(folder / name) for variable, name in names.items()}
    stack("up", "-d", "--wait")
    trusting = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    port = stack.environment["EDGE_TLS_PORT"]
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting, timeout=30, trust_env=False) as client:
        yield client
    stack.environment = before
    stack("up", "-d", "--wait")


@pytest.mark.parametrize("server", SERVERS)
def test_api_keys_over_tls(guarded: httpx.Client, server: str) -> None:
    wrong = ("", "wrong", KEYS[0].upper(), KEYS[0] + "x", KEYS[0].replace(".", "x"), "|".join(KEYS))
    for key in wrong:
        refused = ask(guarded, server, headers={"x-api-key": key})
        assert refused.status_code == 401, key
        assert refused.json()["status"] == 401
    for key in KEYS:
        assert ask(guarded, server, headers={"x-api-key": key}).status_code == 200
        assert ask(guarded, server, headers={"authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize("server", SERVERS)
def test_without_tls_nothing_but_the_way_to_it(stack: Composed, guarded: httpx.Client, server: str) -> None:
    with httpx.Client(base_url=stack.edge, trust_env=False) as plain:
        response = ask(plain, server, headers={"x-api-key": KEYS[0]})
    assert response.status_code == 308
    assert response.headers["location"] == f"{str(guarded.base_url).rstrip('/')}{PATHS[server]}"


@pytest.mark.usefixtures("guarded")
def test_the_load_test_has_the_key(stack: Composed) -> None:
    quick = (
        "--scenario",
        "single-stream",
        "--duration-s",
        "0.5",
        "--warmup-s",
        "0.2",
        "--warmup-max-s",
        "0.2",
        "--rounds",
        "1",
    )
    shown = stack("run", "--rm", "loadtest", "bench", *quick, check=False)
    assert "report: " in shown, shown
    assert "was not timed" not in shown, shown


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, with or without a word."""
    try:
        return sock.recv(4096)[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 429")
    except ConnectionResetError:
        return True
