"""One real Triton with a short queue: its warm-up, and its bound on what waits."""

import itertools
import re
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

from bundle.preprocess import preprocess
from bundle.store import Bundle
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint
from serving.clients.metrics import samples
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from tests.answers import golden_faults
from tests.bursts import Answer, burst, grpc_burst, in_flight
from tests.images import encoded, gradient
from tests.waiting import wait_until
from tests.workplace import until_ready

pytestmark = [pytest.mark.integration, pytest.mark.serial]


@pytest.fixture(scope="module")
def triton(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Eight images have a place: four that wait, and a batch that runs."""
    settings = ServingSettings(
        bundles=digits.path.parents[1], models=(str(digits.path),), queue_size=4, max_batch_size=4, threads=1
    )
    with running_stack(settings, ["triton"], tmp_path_factory.mktemp("triton")) as state:
        (endpoint,) = state.endpoints()
        yield endpoint


def executions(triton: Endpoint, model: str) -> dict[int, int]:
    """How often a model ran, by batch size."""
    (stats,) = httpx.get(f"{triton.url}/v2/models/{model}/stats").json()["model_stats"]
    return {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}


def test_the_classifier_is_warm_before_the_first_request(triton: Endpoint) -> None:
    assert set(executions(triton, "digits_v1_classifier")) == {1, 4}


def test_a_burst_beyond_triton_s_bound_is_refused_without_stalls(triton: Endpoint) -> None:
    """Triton's own bound made its batcher sleep for 500 ms at a time; ours must not."""
    # They take longer to decode than this client takes to send them.
    requests = [dialect_of("triton").http("digits", 1).request(encoded(gradient(1000, 1000)), 1)] * 128

    def longest_pause() -> float:
        answers = burst(triton.url, requests)
        assert {answer.code for answer in answers} == {200, 503}
        came = sorted(answer.came for answer in answers)
        return max(later - earlier for earlier, later in itertools.pairwise(came))

    # Those stalls came in every burst; on a busy machine anything may pause once.
    assert min(longest_pause() for _ in range(4)) < 0.45


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_refusals_do_not_wait_behind_work(triton: Endpoint, protocol: str) -> None:
    """Images that are small to send and slow to decode: whoever is refused knows it while the others still wait."""
    image = encoded(gradient(2000, 2000))
    assert triton.grpc is not None
    address = triton.grpc

    def answers() -> list[Answer]:
        if protocol == "grpc":
            return grpc_burst(address, dialect_of("triton").grpc("digits", 1), image, 64)
        return burst(triton.url, [dialect_of("triton").http("digits", 1).request(image)] * 64)

    taken, refusal = ("OK", "UNAVAILABLE") if protocol == "grpc" else (200, 503)

    def slowest_refusal() -> float:
        """As a share of the slowest answer's time."""
        found = answers()
        assert {answer.code for answer in found} == {taken, refusal}
        served = [answer for answer in found if answer.code == taken]
        refused = [answer for answer in found if answer.code == refusal]
        assert all(b"overloaded: 4 images wait already" in answer.body for answer in refused)
        assert max(answer.came for answer in refused) < max(answer.came for answer in served)
        return max(answer.seconds for answer in refused) / max(answer.seconds for answer in served)

    # On a busy machine anything may pause once.
    assert min(slowest_refusal() for _ in range(3)) < 0.5


def test_pixels_have_a_model_of_their_own(triton: Endpoint, digits: Bundle) -> None:
    client = http.InferenceServerClient(triton.url.removeprefix("http://"))
    pixels = np.stack([preprocess(data, digits.manifest.input) for _, data in digits.golden_inputs()[:3]])
    tensor = http.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    probabilities = client.infer("digits_v1_classifier", [tensor]).as_numpy("probabilities")
    np.testing.assert_allclose(probabilities, digits.golden_probabilities()[:3], atol=1e-4)
    client.close()


def test_several_images_in_one_request(triton: Endpoint, digits: Bundle) -> None:
    client = http.InferenceServerClient(triton.url.removeprefix("http://"))

    def ask(count: int) -> list[bytes]:
        images = np.array([[data] for _, data in digits.golden_inputs()[:count]], dtype=object)
        tensor = http.InferInput("image", [count, 1], "BYTES")
        tensor.set_data_from_numpy(images)
        answers: list[bytes] = client.infer("digits_v1", [tensor]).as_numpy("answer").reshape(-1).tolist()
        return answers

    answers = ask(4)
    top = [int(re.findall(rb'"class_id":(\d+)', answer)[0]) for answer in answers]
    assert top == digits.golden_probabilities()[:4].argmax(axis=1).tolist()
    with pytest.raises(InferenceServerException, match="4"):
        ask(5)
    client.close()


def test_the_counters_of_the_model(triton: Endpoint, digits: Bundle) -> None:
    def counted() -> dict[str, float]:
        return {
            name: value
            for name, labels, value in samples(triton.metrics_url)
            if labels.get("model") == "digits_v1_image"
        }

    before = counted()
    assert before["trident_held_images"] == 0
    requests = [dialect_of("triton").http("digits", 1).request(digits.golden_inputs()[0][1], 1)] * 4
    assert [answer.code for answer in burst(triton.url, requests)] == [200] * 4
    after = wait_until(
        lambda: found if (found := counted())["trident_images_total"] >= before["trident_images_total"] + 4 else None,
        10,
    )
    assert after["trident_batches_total"] > before["trident_batches_total"]
    assert after["trident_decode_seconds_total"] > before["trident_decode_seconds_total"]
    assert after["trident_inference_seconds_total"] > before["trident_inference_seconds_total"]


def test_an_overloaded_triton_refuses_at_once_and_answers_the_others(digits: Bundle, tmp_path: Path) -> None:
    """Images that take long to decode, and 300 clients at once, again and again."""
    settings = ServingSettings(
        bundles=digits.path.parents[1], models=(str(digits.path),), max_batch_size=4, threads=1, request_timeout_s=4
    )
    request = dialect_of("triton").http("digits", 1).request(encoded(gradient(2000, 2000)))
    with running_stack(settings, ["triton"], tmp_path) as state:
        (endpoint,) = state.endpoints()

        def rounds(clients: int, seconds: float) -> tuple[list[Answer], float]:
            answers, started = [], time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                answers += burst(endpoint.url, [request] * clients)
            return answers, elapsed

        alone, alone_s = rounds(8, 2)
        crowded, crowded_s = rounds(300, 6)
    assert {answer.code for answer in alone} == {200}
    served = [answer.seconds for answer in crowded if answer.code == 200]
    refused = [answer.seconds for answer in crowded if answer.code == 503]
    assert len(served) + len(refused) == len(crowded)
    assert len(served) / crowded_s >= 0.8 * len(alone) / alone_s
    assert max(served) < 4
    assert np.median(refused) < 0.25 * max(served)


def test_requests_of_a_dead_stub_end_with_triton(digits: Bundle, tmp_path: Path) -> None:
    """The model holds images that take long to decode. Those that its process held would never be answered."""
    settings = ServingSettings(bundles=digits.path.parents[1], models=(str(digits.path),), max_batch_size=4, threads=1)
    request = dialect_of("triton").http("digits", 1).request(encoded(gradient(2000, 2000)))
    with running_stack(settings, ["triton"], tmp_path / "artifacts" / "stack") as state:
        (endpoint,) = state.endpoints()
        before = state.servers["triton"]
        assert {answer.code for answer in burst(endpoint.url, [request] * 64)} == {200}  # now it is known to be slow
        with in_flight(endpoint.url, [request] * 64) as answers:
            wait_until(lambda: held(endpoint) > 0, 10, pause_s=0.01)
            assert before.pid is not None
            (stub,) = [
                child
                for child in psutil.Process(before.pid).children(recursive=True)
                if any("digits_v1_image" in word for word in child.cmdline())
            ]
            stub.kill()
            started = time.monotonic()
            with pytest.raises((HTTPException, OSError)):
                answers()
        assert time.monotonic() - started < 20
        until_ready(tmp_path, "triton", lambda state: state.pid != before.pid)
        assert golden_faults([endpoint], digits) == []


def held(endpoint: Endpoint) -> float:
    """The images that the models hold."""
    return sum(value for name, _, value in samples(endpoint.metrics_url) if name == "trident_held_images")
