"""One real Triton with a short queue: its warm-up, and its bound on what waits."""

import itertools
from collections.abc import Iterator

import httpx
import pytest

from bundle.store import Bundle
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from tests.bursts import Answer, burst, grpc_burst
from tests.images import encoded, gradient

pytestmark = [pytest.mark.integration, pytest.mark.serial]


@pytest.fixture(scope="module")
def triton(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Eight images have a place: four that wait, and a batch that runs. One process decodes."""
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


def test_the_classifier_is_warm_before_anybody_asks(triton: Endpoint) -> None:
    """The supervisor has asked, one image at a time; what ran besides was the warm-up."""
    asked = [executions(triton, ensemble) for ensemble in ("digits", "digits_v1")]
    ran = executions(triton, "digits_v1_classifier")
    assert all(set(sizes) == {1} for sizes in asked)
    assert ran[1] > sum(sizes[1] for sizes in asked)
    assert ran[4] >= 1


def test_a_burst_beyond_triton_s_bound_is_refused_without_stalls(triton: Endpoint, digits: Bundle) -> None:
    """Triton's own bound made its batcher sleep for 500 ms at a time; ours must not."""
    requests = [dialect_of("triton").http("digits", 1).request(digits.golden_inputs()[0][1], 1)] * 128

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
