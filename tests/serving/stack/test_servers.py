"""The three real servers."""

import base64
import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from pydantic import SecretStr

from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, ServerName
from serving.clients.http_client import HttpClient
from serving.clients.http_wire import RefusedError
from serving.scratch import SHARED_MEMORY, scratch_name
from serving.server_api import call
from serving.servers.server import server_class
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from serving.stack.state import STACK, StackState
from tests.bursts import burst
from tests.terminal import documented_curls, typed
from tests.workplace import leftovers_of, now, processes_of, trident, triton_admin

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the bundle `digits:1`."""
    folder = tmp_path_factory.mktemp("servers")
    shutil.copytree(digits.path, folder / "artifacts" / "bundles" / "digits" / "1")
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[StackState]:
    """The stack, started and stopped by the command line."""
    # Settings that differ from the defaults, so that it shows whether a server took them.
    changed = {"TRIDENT_THREADS": "1", "TRIDENT_REQUEST_TIMEOUT_S": "9", "TRIDENT_MAX_BODY_BYTES": "9000000"}
    changed |= {"TRIDENT_QUEUE_SIZE": "255", "TRIDENT_MAX_IMAGE_PIXELS": "20000000"}
    flags = ("--max-batch-size", "4", "--queue-delay-ms", "1.5")
    trident("up", "--free-ports", *flags, cwd=folder, check=True, env=changed)
    yield now(folder)
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


def url(state: StackState, server: ServerName) -> str:
    endpoint = state.servers[server].endpoint
    assert endpoint is not None
    return endpoint.url


def test_up_says_where(running: StackState, folder: Path) -> None:
    assert running.ready
    done = trident("status", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("right") == 3
    again = trident("up", cwd=folder)
    assert again.returncode == 1
    assert "runs already" in again.stderr


def test_every_server_runs_with_the_settings_it_was_given(running: StackState, digits: Bundle) -> None:
    deployment = running.deployment()
    servers = [server_class(name)(running.settings, deployment, STACK / name) for name in running.servers]
    said = {server.name: server.effective_settings() for server in servers}
    for server in servers:
        untold = {"max_body_bytes"} if server.name == "torchserve" else set()
        expected = {name: value for name, value in server.expected_settings().items() if name not in untold}
        assert said[server.name] == expected
    assert {name: shown["max_batch_size"] for name, shown in said.items()} == dict.fromkeys(SERVERS, 4)
    # Milliseconds in our settings; Triton counts microseconds, TorchServe whole milliseconds.
    assert [said[name]["queue_delay_ms"] for name in SERVERS] == [1.5, 2, 1.5]


def test_predict_shows_the_same_answer_from_all_three(running: StackState, folder: Path, digits: Bundle) -> None:
    image = digits.path / digits.manifest.golden.inputs[3].file
    golden = digits.golden_probabilities()[3]
    done = trident("predict", str(image), "--top-k", "1", cwd=folder, check=True)
    lines = [line for line in done.stdout.splitlines() if image.name in line]
    assert [line.split()[1] for line in lines] == list(SERVERS)
    expected = f"{digits.manifest.labels[int(golden.argmax())]} {golden.max():.1%}"
    assert all(expected in line for line in lines)


def test_verify_is_green(running: StackState, folder: Path) -> None:
    done = trident("verify", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout


def stubs_of(triton: int) -> set[int]:
    """The processes of its python models."""
    children = psutil.Process(triton).children(recursive=True)
    return {child.pid for child in children if "triton_python_backend_stub" in child.cmdline()[0]}


def metric(state: StackState, server: ServerName, name: str) -> float:
    """The sum of all samples of a metric."""
    endpoint = state.servers[server].endpoint
    assert endpoint is not None
    lines = httpx.get(endpoint.metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))


def images_and_batches(state: StackState, server: ServerName) -> tuple[float, float]:
    """How many the model has computed, as the server itself counts them."""
    if server == "fastapi":
        return metric(state, server, "trident_batch_size_sum"), metric(state, server, "trident_batch_size_count")
    if server == "torchserve":
        images = metric(state, server, "ts_inference_requests_total")
        return images, metric(state, server, "trident_inference_seconds_count")
    (stats,) = httpx.get(f"{url(state, server)}/v2/models/digits_v1_classifier/stats").json()["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def until_torchserve_has_counted(state: StackState) -> None:
    """It reads its workers' metrics from their output, some time after the answer. A broken image is handled, but never
    inferred, and counted after all that was before it.
    """

    def broken() -> float:
        handled = metric(state, "torchserve", "trident_handler_seconds_count")
        return handled - metric(state, "torchserve", "trident_inference_seconds_count")

    before, deadline = broken(), time.monotonic() + 30
    assert httpx.post(f"{url(state, 'torchserve')}/predictions/digits", content=b"broken").status_code == 415
    while broken() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("server", SERVERS)
def test_images_that_come_at_once_are_computed_in_batches(
    running: StackState, digits: Bundle, server: ServerName
) -> None:
    wire = dialect_of(server).http("digits", 1)
    images = [data for _, data in digits.golden_inputs()] * 4
    before, deadline = images_and_batches(running, server), time.monotonic() + 30
    answers = burst(url(running, server), [wire.request(image, 1) for image in images])
    for answer, golden in zip(answers, itertools.cycle(digits.golden_probabilities())):
        top = wire.prediction(int(answer.code), answer.headers, answer.body).top
        assert abs(top.probability - golden.max()) < 1e-4
    if server == "torchserve":
        until_torchserve_has_counted(running)
    while (grown := np.subtract(images_and_batches(running, server), before))[0] < len(images):
        assert time.monotonic() < deadline, grown
        time.sleep(0.05)
    # No batch has more than 4; the supervisor asks one by one meanwhile.
    assert len(images) / 4 <= grown[1] < len(images)


@pytest.mark.parametrize("server", SERVERS)
def test_errors_are_the_clients(running: StackState, digits: Bundle, server: ServerName) -> None:
    endpoint = running.servers[server].endpoint
    assert endpoint is not None
    image = digits.golden_inputs()[0][1]
    with HttpClient(endpoint, "digits", 1) as client:
        for broken in (b"", b"nonsense", image[:60]):
            with pytest.raises(RefusedError) as caught:
                client.predict(broken)
            assert 400 <= caught.value.code < 500
        assert len(client.predict(image, top_k=3).predictions) == 3
    with HttpClient(endpoint, "nobody") as client, pytest.raises(RefusedError) as caught:
        client.predict(image)
    assert caught.value.code == 404


def test_torchserve_reads_the_same_three_forms(running: StackState, digits: Bundle) -> None:
    address = f"{url(running, 'torchserve')}/predictions/digits"
    image = digits.golden_inputs()[0][1]
    answers = [
        httpx.post(address, content=image, headers={"content-type": "image/png"}),
        httpx.post(address, files={"file": image}),
        httpx.post(address, json={"image_b64": base64.b64encode(image).decode()}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_large_images_at_once_leave_triton_s_shared_memory_as_it_was(
    running: StackState, folder: Path, digits: Bundle
) -> None:
    wire = dialect_of("triton").http("digits", 1)
    size = running.settings.max_body_bytes - 64
    images = [data.ljust(size, b"\0") for _, data in digits.golden_inputs()] * 4
    before = now(folder).servers["triton"]
    assert before.pid is not None
    stubs = stubs_of(before.pid)

    def after_a_burst() -> int:
        answers = burst(url(running, "triton"), [wire.request(image, 1) for image in images])
        assert {answer.code for answer in answers} <= {200, 503}
        assert any(answer.code == 200 for answer in answers)
        for answer, golden in zip(answers, itertools.cycle(digits.golden_probabilities())):
            if answer.code == 200:
                top = wire.prediction(200, answer.headers, answer.body).top
                assert abs(top.probability - golden.max()) < 1e-4
        regions = SHARED_MEMORY.glob(f"{scratch_name(folder / 'artifacts' / 'stack' / 'triton')}*")
        return sum(region.stat().st_size for region in regions)

    sizes = [after_a_burst(), after_a_burst()]
    while sizes[-1] > sizes[-2]:  # more of them met in a process than before
        assert len(sizes) < 6, sizes
        sizes.append(after_a_burst())
    state = now(folder).servers["triton"]
    assert (stubs_of(before.pid), state.repairs, state.restarts) == (stubs, before.repairs, before.restarts)
    assert trident("verify", "--servers", "triton", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    "command", [line for server in SERVERS for line in documented_curls(f"docs/{server}.md", "image.png")]
)
def test_the_documented_curl_shows_its_answer_on_a_terminal(
    running: StackState, digits: Bundle, tmp_path: Path, command: str
) -> None:
    (tmp_path / "image.png").write_bytes(digits.golden_inputs()[3][1])
    code, shown = typed(command, running, tmp_path)
    assert code == 0, shown
    label = digits.manifest.labels[int(digits.golden_probabilities()[3].argmax())]
    counted = "inference_(count|seconds)|trident_requests_total"
    asked = rf'"predictions":\[{{"label":"{label}"' if "image.png" in command else counted
    assert re.search(asked, shown), shown


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_unmodified_tritonclient_reads_triton(running: StackState, digits: Bundle, protocol: str) -> None:
    if protocol == "http":
        import tritonclient.http as protocol_client

        address = url(running, "triton").removeprefix("http://")
    else:
        import tritonclient.grpc as protocol_client

        endpoint = running.servers["triton"].endpoint
        assert endpoint is not None
        assert endpoint.grpc is not None
        address = endpoint.grpc
    client = protocol_client.InferenceServerClient(address)
    try:
        image = protocol_client.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[digits.golden_inputs()[0][1]]], dtype=object))
        answer = client.infer("digits", [image], parameters={"top_k": 2}).as_numpy("answer")[0, 0]
        assert answer.startswith(b'{"model":"digits","version":1,"predictions":[{"label":')
        assert answer.count(b'"label"') == 2
    finally:
        client.close()


def test_swapped_weights_are_found_and_replaced(
    running: StackState, folder: Path, other_weights: Bundle, digits: Bundle
) -> None:
    """Triton's classifier gets the weights of another bundle; verify says which lanes and which image, and the
    supervisor starts Triton again with the right ones.
    """
    classifier = folder / "artifacts/stack/triton/model_repository/digits_v1_classifier/1/model.onnx"
    load = f"{url(running, 'triton')}/v2/repository/models/digits_v1_classifier/load"
    before = now(folder).servers["triton"]
    os.kill(running.pid, signal.SIGSTOP)  # so that the supervisor does not come first
    try:
        shutil.copyfile(other_weights.path / "model.onnx", classifier)
        assert before.pid is not None
        assert httpx.post(load, headers=triton_admin(before.pid), timeout=60).status_code == 200
        done = trident("verify", cwd=folder)
    finally:
        os.kill(running.pid, signal.SIGCONT)
    assert done.returncode == 1
    for lane in ("triton http", "triton grpc"):
        assert f"{lane}, golden probabilities: golden/00.png: probabilities differ" in done.stdout
    assert "fastapi http, golden" not in done.stdout
    assert "torchserve http, golden" not in done.stdout
    deadline = time.monotonic() + 120
    while (state := now(folder).servers["triton"]).pid == before.pid or state.phase != "ready":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    assert trident("verify", "--servers", "triton", cwd=folder).returncode == 0


@pytest.mark.parametrize("server", SERVERS)
def test_a_killed_server_comes_back(running: StackState, folder: Path, server: ServerName) -> None:
    before = now(folder).servers[server]
    assert before.pid is not None
    family = [psutil.Process(before.pid), *psutil.Process(before.pid).children(recursive=True)]
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (state := now(folder).servers[server]).pid == before.pid or state.phase != "ready":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    assert state.restarts == before.restarts + 1
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert trident("verify", "--servers", server, cwd=folder).returncode == 0


def test_a_dead_stub_of_triton_is_mended_without_a_restart(running: StackState, folder: Path) -> None:
    """Triton itself would fail every request to it from now on, and call itself ready."""
    before = now(folder).servers["triton"]
    assert before.pid is not None
    stubs = [
        child
        for child in psutil.Process(before.pid).children(recursive=True)
        if any("digits_v1_preprocess" in word for word in child.cmdline())
    ]
    stubs[0].kill()
    deadline = time.monotonic() + 60
    while (state := now(folder).servers["triton"]).repairs == before.repairs or state.phase != "ready":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    assert (state.pid, state.restarts) == (before.pid, before.restarts)
    assert trident("verify", "--servers", "triton", cwd=folder).returncode == 0


def test_a_killed_worker_of_torchserve_shows_and_comes_back(running: StackState, folder: Path) -> None:
    before = now(folder).servers["torchserve"]
    assert before.pid is not None
    (worker,) = [
        child
        for child in psutil.Process(before.pid).children(recursive=True)
        if any("model_service_worker" in word for word in child.cmdline())
    ]
    worker.kill()
    deadline = time.monotonic() + 60
    seen = set()
    while (state := now(folder).servers["torchserve"]).phase != "ready" or "degraded" not in seen:
        seen.add(state.phase)
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    assert (state.pid, state.restarts) == (before.pid, before.restarts)
    assert trident("verify", "--servers", "torchserve", cwd=folder).returncode == 0


def test_a_worker_that_torchserve_gave_up_is_brought_back(running: StackState, folder: Path) -> None:
    before = now(folder).servers["torchserve"]
    model = f"http://127.0.0.1:{running.settings.ports.torchserve_management}/models/digits/1"
    call("PUT", f"{model}?min_worker=0&max_worker=0&synchronous=true")
    deadline = time.monotonic() + 120
    while now(folder).servers["torchserve"].phase != "degraded":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = trident("status", cwd=folder)
    assert done.returncode == 1
    assert "0 of 1 workers of digits:1" in done.stdout
    while (state := now(folder).servers["torchserve"]).repairs == before.repairs or state.phase != "ready":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    assert (state.pid, state.repairs, state.restarts) == (before.pid, before.repairs + 1, before.restarts)
    assert trident("verify", "--servers", "torchserve", cwd=folder).returncode == 0


def test_keys_are_asked_for_by_all_three(digits: Bundle, tmp_path: Path) -> None:
    keys = (SecretStr("first-key"), SecretStr("second"))
    settings = ServingSettings(bundles=digits.path.parents[1], models=(str(digits.path),), api_keys=keys)
    image = digits.golden_inputs()[0][1]
    refused = set()
    with running_stack(settings, SERVERS, tmp_path) as state:
        for endpoint in state.endpoints():
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


def test_bench_measures_all_three(running: StackState, folder: Path) -> None:
    done = trident(
        *("bench", "--duration-s", "0.5", "--warmup-s", "0.2", "--rounds", "1", "--concurrency", "2"),
        cwd=folder,
        check=True,
    )
    (report,) = folder.glob("artifacts/results/*/report.html")
    assert str(report) in done.stdout
    for server in SERVERS:
        assert f"{server}" in done.stdout
    assert "16 of 16" in done.stdout
    assert trident("report", cwd=folder).returncode == 0


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_locust_drives_a_server_with_master_and_workers(
    loop: str, running: StackState, folder: Path, tmp_path: Path
) -> None:
    locustfile = Path(__file__).parents[3] / "loadtest" / "locustfile.py"
    arguments = [
        "--host",
        url(running, "fastapi"),
        "--loop",
        loop,
        "--rate-per-user",
        "30",
        "--csv",
        str(tmp_path / "seen"),
    ]
    subprocess.run(
        [Path(sys.executable).with_name("locust"), "-f", locustfile, "--headless", "--processes", "2",
         "--users", "2", "--spawn-rate", "10", "--run-time", "4s", *arguments],
        cwd=folder, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    with (tmp_path / "seen_stats.csv").open() as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    assert int(total["Failure Count"]) == 0
    assert int(total["Request Count"]) > 60


def test_the_death_of_the_supervisor_takes_everything_along(folder: Path, running: StackState) -> None:
    state = now(folder)
    assert len(processes_of(folder)) >= 4
    os.kill(state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while processes_of(folder):
        assert time.monotonic() < deadline, processes_of(folder)
        time.sleep(0.2)
    assert trident("status", cwd=folder).returncode == 1
