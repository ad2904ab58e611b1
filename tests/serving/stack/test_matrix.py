"""Every runtime on every server that is here, with two versions at once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.clients.endpoint import SERVERS
from serving.clients.http_client import HttpClient
from serving.server_api import call
from serving.stack.state import StackState
from tests.workplace import leftovers_of, now, processes_of, trident

pytestmark = pytest.mark.integration
MATRIX = [
    pytest.param(("torchscript", "native", "all"), id="torchscript"),
    pytest.param(("onnxruntime", "python", "triton"), id="triton-python-onnxruntime"),
    pytest.param(("torchscript", "python", "triton"), id="triton-python-torchscript"),
]


@pytest.fixture(scope="module")
def folder(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `digits:1` and `digits:2`, which has the same weights."""
    folder = tmp_path_factory.mktemp("matrix")
    for version in ("1", "2"):
        copy = folder / "artifacts" / "bundles" / "digits" / version
        shutil.copytree(digits.path, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"version": int(version)}))
    return folder


@pytest.fixture(scope="module", params=MATRIX)
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[StackState]:
    runtime, classifier, servers = request.param
    flags = ("--runtime", runtime, "--servers", servers, "--model", "digits:2", "--model", "digits:1")
    trident("up", "--free-ports", *flags, cwd=folder, check=True, env={"TRIDENT_TRITON_CLASSIFIER": classifier})
    yield now(folder)
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


def test_verify_is_green_for_both_versions(running: StackState, folder: Path) -> None:
    for version in (1, 2):
        done = trident("verify", "--model", f"digits:{version}", cwd=folder)
        assert done.returncode == 0, done.stdout
        assert "FAILED" not in done.stdout


def test_the_version_that_was_named_last_is_the_default(running: StackState) -> None:
    for endpoint in running.endpoints():
        with HttpClient(endpoint, "digits") as client:
            assert client.predict(read_golden(running)).version == 1


def test_status_says_what_runs(running: StackState, folder: Path) -> None:
    done = trident("status", cwd=folder)
    assert done.returncode == 0, done.stdout
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["runtime"])
    assert row.split()[1:] == [running.settings.runtime] * len(running.servers)


def test_status_is_red_where_a_server_runs_with_something_else(running: StackState, folder: Path) -> None:
    if set(running.servers) != set(SERVERS):
        pytest.skip("it is TorchServe that can be changed behind our back")
    management = f"http://127.0.0.1:{running.settings.ports.torchserve_management}/models/digits/1"
    call("PUT", f"{management}?min_worker=2&max_worker=2&synchronous=true", timeout_s=60)
    done = trident("status", cwd=folder)
    assert done.returncode == 1
    assert "2, not 1" in done.stdout
    done = trident("status", "--json", cwd=folder)
    assert done.returncode == 1
    assert json.loads(done.stdout)["runs_with"]["torchserve"]["workers"] == 2
    call("PUT", f"{management}?min_worker=1&max_worker=1&synchronous=true", timeout_s=60)
    assert trident("status", cwd=folder).returncode == 0


def read_golden(running: StackState) -> bytes:
    return next((running.bundles[0] / "golden").glob("*.png")).read_bytes()
