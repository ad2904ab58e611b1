"""The three real servers: what they answer and what they report. The shared stack is left as it was found."""

import base64
import itertools
import re
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from bundle.store import Bundle
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, ServerName
from serving.clients.http_client import HttpClient
from serving.clients.http_wire import RefusedError
from serving.scratch import SHARED_MEMORY, scratch_name
from serving.servers.server import server_class
from serving.stack.state import STACK, StackState
from tests.answers import golden_faults
from tests.bursts import burst
from tests.terminal import documented_curls, typed
from tests.waiting import wait_until
from tests.workplace import Run, endpoint_of, now, trident

pytestmark = pytest.mark.integration


def test_status_is_green(stack: StackState, workplace: Path) -> None:
    assert stack.ready
    done = trident("status", cwd=workplace)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("right") == 3


def test_a_second_stack_is_refused(stack: StackState, workplace: Path, run: Run) -> None:
    code, shown = run("up", cwd=workplace)
    assert code == 1
    assert "runs already" in shown


def test_every_server_runs_with_the_settings_it_was_given(stack: StackState) -> None:
    deployment = stack.deployment()
    servers = [server_class(name)(stack.settings, deployment, STACK / name) for name in stack.servers]
    reported = {server.name: server.effective_settings() for server in servers}
    for server in servers:
        unreported = {"max_body_bytes"} if server.name == "torchserve" else set()
        expected = {name: value for name, value in server.expected_settings().items() if name not in unreported}
        assert reported[server.name] == expected
    assert {name: shown["max_batch_size"] for name, shown in reported.items()} == dict.fromkeys(SERVERS, 4)
    # Milliseconds in our settings; Triton counts microseconds, TorchServe whole milliseconds.
    assert [reported[name]["queue_delay_ms"] for name in SERVERS] == [1.5, 2, 1.5]


def test_predict_shows_the_same_answer_from_all_three(stack: StackState, workplace: Path, digits: Bundle) -> None:
    image = digits.path / digits.manifest.golden.inputs[3].file
    golden = digits.golden_probabilities()[3]
    done = trident("predict", str(image), "--top-k", "1", cwd=workplace, check=True)
    lines = [line for line in done.stdout.splitlines() if image.name in line]
    assert [line.split()[1] for line in lines] == list(SERVERS)
    expected = f"{digits.manifest.labels[int(golden.argmax())]} {golden.max():.1%}"
    assert all(expected in line for line in lines)


def test_verify_is_green(stack: StackState, workplace: Path) -> None:
    done = trident("verify", cwd=workplace)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout


def stubs_of(triton: int) -> set[int]:
    """The processes of its python models."""
    children = psutil.Process(triton).children(recursive=True)
    return {child.pid for child in children if "triton_python_backend_stub" in child.cmdline()[0]}


def metric(state: StackState, server: ServerName, name: str) -> float:
    """The sum of all samples of a metric."""
    lines = httpx.get(endpoint_of(state, server).metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))


def images_and_batches(state: StackState, server: ServerName) -> tuple[float, float]:
    """How many the model has computed, as the server itself counts them."""
    if server == "fastapi":
        return metric(state, server, "trident_batch_size_sum"), metric(state, server, "trident_batch_size_count")
    if server == "torchserve":
        images = metric(state, server, "ts_inference_requests_total")
        return images, metric(state, server, "trident_inference_seconds_count")
    return metric(state, server, "trident_images_total"), metric(state, server, "trident_batches_total")


def until_torchserve_has_counted(state: StackState) -> None:
    """It reads its workers' metrics from their output, some time after the answer. A broken image is handled, but never
    inferred, and counted after all that was before it.
    """

    def broken() -> float:
        handled = metric(state, "torchserve", "trident_handler_seconds_count")
        return handled - metric(state, "torchserve", "trident_inference_seconds_count")

    before = broken()
    assert (
        httpx.post(f"{endpoint_of(state, 'torchserve').url}/predictions/digits", content=b"broken").status_code == 415
    )
    wait_until(lambda: broken() > before, 30)


@pytest.mark.parametrize("server", SERVERS)
def test_images_that_come_at_once_are_computed_in_batches(
    stack: StackState, digits: Bundle, server: ServerName
) -> None:
    wire = dialect_of(server).http("digits", 1)
    images = [data for _, data in digits.golden_inputs()] * 4
    before = images_and_batches(stack, server)
    answers = burst(endpoint_of(stack, server).url, [wire.request(image, 1) for image in images])
    for answer, golden in zip(answers, itertools.cycle(digits.golden_probabilities())):
        top = wire.prediction(int(answer.code), answer.headers, answer.body).top
        assert abs(top.probability - golden.max()) < 1e-4
    if server == "torchserve":
        until_torchserve_has_counted(stack)
    wait_until(lambda: images_and_batches(stack, server)[0] >= before[0] + len(images), 30)
    batches = images_and_batches(stack, server)[1] - before[1]
    # No batch has more than 4; the supervisor sends single images meanwhile.
    assert len(images) / 4 <= batches < len(images)


@pytest.mark.parametrize("server", SERVERS)
def test_errors_are_the_clients(stack: StackState, digits: Bundle, server: ServerName) -> None:
    endpoint = endpoint_of(stack, server)
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


def test_torchserve_reads_the_same_three_forms(stack: StackState, digits: Bundle) -> None:
    address = f"{endpoint_of(stack, 'torchserve').url}/predictions/digits"
    image = digits.golden_inputs()[0][1]
    answers = [
        httpx.post(address, content=image, headers={"content-type": "image/png"}),
        httpx.post(address, files={"file": image}),
        httpx.post(address, json={"image_b64": base64.b64encode(image).decode()}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_large_images_at_once_leave_triton_s_shared_memory_as_it_was(
    stack: StackState, workplace: Path, digits: Bundle
) -> None:
    wire = dialect_of("triton").http("digits", 1)
    size = stack.settings.max_body_bytes - 64
    images = [data.ljust(size, b"\0") for _, data in digits.golden_inputs()] * 4
    before = now(workplace).servers["triton"]
    assert before.pid is not None
    stubs = stubs_of(before.pid)

    def after_a_burst() -> int:
        answers = burst(endpoint_of(stack, "triton").url, [wire.request(image, 1) for image in images])
        assert {answer.code for answer in answers} <= {200, 503}
        assert any(answer.code == 200 for answer in answers)
        for answer, golden in zip(answers, itertools.cycle(digits.golden_probabilities())):
            if answer.code == 200:
                top = wire.prediction(200, answer.headers, answer.body).top
                assert abs(top.probability - golden.max()) < 1e-4
        regions = SHARED_MEMORY.glob(f"{scratch_name(workplace / 'artifacts' / 'stack' / 'triton')}*")
        return sum(region.stat().st_size for region in regions)

    sizes = [after_a_burst(), after_a_burst()]
    while sizes[-1] > sizes[-2]:  # more of them met in a process than before
        assert len(sizes) < 6, sizes
        sizes.append(after_a_burst())
    state = now(workplace).servers["triton"]
    assert (stubs_of(before.pid), state.repairs, state.restarts) == (stubs, before.repairs, before.restarts)
    assert golden_faults([endpoint_of(stack, "triton")], digits) == []


@pytest.mark.parametrize("command", documented_curls())
def test_the_documented_curl_shows_its_answer_on_a_terminal(
    stack: StackState, digits: Bundle, tmp_path: Path, command: str
) -> None:
    (tmp_path / "image.png").write_bytes(digits.golden_inputs()[3][1])
    code, shown = typed(command, stack, tmp_path)
    assert code == 0, shown
    label = digits.manifest.labels[int(digits.golden_probabilities()[3].argmax())]
    asked = rf'"predictions":\[{{"label":"{label}"' if "image.png" in command else "inference|trident"
    assert re.search(asked, shown), shown


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_unmodified_tritonclient_reads_triton(stack: StackState, digits: Bundle, protocol: str) -> None:
    if protocol == "http":
        import tritonclient.http as protocol_client

        address = endpoint_of(stack, "triton").url.removeprefix("http://")
    else:
        import tritonclient.grpc as protocol_client

        grpc = endpoint_of(stack, "triton").grpc
        assert grpc is not None
        address = grpc
    client = protocol_client.InferenceServerClient(address)
    try:
        image = protocol_client.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[digits.golden_inputs()[0][1]]], dtype=object))
        answer = client.infer("digits", [image], parameters={"top_k": 2}).as_numpy("answer")[0, 0]
        assert answer.startswith(b'{"model":"digits","version":1,"predictions":[{"label":')
        assert answer.count(b'"label"') == 2
    finally:
        client.close()
