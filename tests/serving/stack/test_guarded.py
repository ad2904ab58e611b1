"""TorchScript on all three servers, with two versions and with API keys; started and stopped by the command line."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import SERVERS
from serving.clients.http_wire import API_KEY_HEADER, RefusedError
from serving.server_api import call
from serving.stack.state import StackState
from tests.answers import golden_faults
from tests.workplace import Run, bundle_as, leftovers_of, now, processes_of, trident, triton_admin

pytestmark = pytest.mark.integration
KEYS = {"TRIDENT_API_KEYS": '["first-key", "second"]'}


@pytest.fixture(scope="module")
def folder(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `digits:1` and `digits:2`, which have the same weights."""
    folder = tmp_path_factory.mktemp("guarded")
    for version in (1, 2):
        bundle_as(version, digits, folder / "artifacts" / "bundles")
    return folder


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[StackState]:
    flags = ("--runtime", "torchscript", "--model", "digits:2", "--model", "digits:1", "--threads", "1")
    trident("up", "--free-ports", *flags, cwd=folder, check=True, env=KEYS)
    yield now(folder)
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process have the keys."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("version", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_verify_is_green(guarded: StackState, folder: Path, run: Run, version: int) -> None:
    code, shown = run("verify", "--model", f"digits:{version}", cwd=folder)
    assert code == 0, shown
    assert "FAILED" not in shown


def test_both_versions_answer_and_the_one_that_was_named_last_by_default(guarded: StackState, digits: Bundle) -> None:
    assert golden_faults(guarded.endpoints(), digits, api_key="first-key") == []
    image = digits.golden_inputs()[0][1]
    for endpoint in guarded.endpoints():
        with connect(endpoint, "digits", 2, api_key="first-key") as client:
            assert client.predict(image).version == 2


def test_status_shows_the_runtime(guarded: StackState, folder: Path, run: Run) -> None:
    code, shown = run("status", cwd=folder)
    assert code == 0, shown
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["runtime"])
    assert row.split()[1:] == ["torchscript"] * len(SERVERS)


def test_status_is_red_where_a_server_runs_with_other_settings(guarded: StackState, folder: Path, run: Run) -> None:
    management = f"http://127.0.0.1:{guarded.settings.ports.torchserve_management}/models/digits/1"
    call("PUT", f"{management}?min_worker=2&max_worker=2&synchronous=true", timeout_s=60)
    code, shown = run("status", cwd=folder)
    assert code == 1
    assert "2, not 1" in shown
    code, shown = run("status", "--json", cwd=folder)
    assert code == 1
    assert json.loads(shown)["runs_with"]["torchserve"]["workers"] == 2
    call("PUT", f"{management}?min_worker=1&max_worker=1&synchronous=true", timeout_s=60)
    assert run("status", cwd=folder)[0] == 0


def test_all_three_ask_for_keys(guarded: StackState, digits: Bundle) -> None:
    image = digits.golden_inputs()[0][1]
    refused = set()
    for endpoint in guarded.endpoints():
        for protocol in endpoint.protocols:
            with connect(endpoint, "digits", protocol=protocol, api_key="first-key") as client:
                assert client.predict(image).model == "digits"
            for wrong in (None, "another"):
                with (
                    connect(endpoint, "digits", protocol=protocol, api_key=wrong) as client,
                    pytest.raises(RefusedError) as caught,
                ):
                    client.predict(image)
                refused.add((f"{endpoint.server} {protocol}", caught.value.code))
    assert refused == {
        ("fastapi http", 401),
        ("torchserve http", 401),
        ("torchserve grpc", 401),
        ("triton http", 403),
        ("triton grpc", 403),
    }


def test_a_key_for_predictions_does_not_change_what_triton_serves(guarded: StackState) -> None:
    state = guarded.servers["triton"]
    assert state.endpoint is not None
    assert state.endpoint.grpc is not None
    assert state.pid is not None
    grpc_key = {f"triton-grpc-protocol-{API_KEY_HEADER}": "first-key"}
    with closing(InferenceServerClient(state.endpoint.grpc)) as client:
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.load_model("digits_v1_preprocess", headers=grpc_key),
            lambda: client.unload_model("digits", headers=grpc_key),
            lambda: client.get_model_repository_index(headers=grpc_key),
            lambda: client.get_system_shared_memory_status(headers=grpc_key),
            lambda: client.get_trace_settings(headers=grpc_key),
            lambda: client.get_log_settings(headers=grpc_key),
        )
        for refused in calls:
            with pytest.raises(InferenceServerException, match="x-trident-admin"):
                refused()
    key = {API_KEY_HEADER: "first-key"}
    with httpx.Client(base_url=state.endpoint.url, headers=key, trust_env=False) as client:
        for path in ("index", "models/digits/unload", "models/digits_v1_preprocess/load"):
            assert client.post(f"/v2/repository/{path}").status_code == 403
        for path in ("systemsharedmemory/status", "trace/setting", "logging"):
            assert client.get(f"/v2/{path}").status_code == 403
        index = client.post("/v2/repository/index", headers=triton_admin(state.pid)).json()
        assert {entry["name"] for entry in index if entry["state"] == "READY"} >= {"digits", "digits_v1"}
        assert client.get("/v2/models/digits_v1_classifier/stats").status_code == 200
