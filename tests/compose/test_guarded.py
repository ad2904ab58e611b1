"""Whom the edge lets in: API keys, TLS. The stack gets other secrets than in the other tests, so these come last."""

import ssl
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from serving.clients.endpoint import SERVERS
from tests.compose.composed import PATHS, Composed, ask

pytestmark = [pytest.mark.docker, pytest.mark.destructive, pytest.mark.timeout(3600)]
KEYS = ("first.key+/=", "second-key_~")


@pytest.fixture(scope="module")
def guarded(stack: Composed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The stack with API keys and a certificate, which it keeps; a client that trusts it."""
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
    stack.environment |= {variable: str(folder / name) for variable, name in names.items()}
    stack("up", "-d", "--wait")
    trusting = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    port = stack.environment["EDGE_TLS_PORT"]
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting, timeout=30, trust_env=False) as client:
        yield client


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
    quick: tuple[str, ...] = ("--scenario", "single-stream", "--duration-s", "0.5", "--rounds", "1")
    quick += ("--initial-warmup-s", "0", "--warmup-s", "0.2", "--warmup-max-s", "0.2")
    shown = stack("run", "--rm", "loadtest", "bench", *quick, check=False)
    assert "report: " in shown, shown
    assert "was not timed" not in shown, shown
