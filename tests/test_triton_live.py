"""One real Triton with a short queue: its warm-up, and its bound on what waits."""

import itertools
from collections.abc import Iterator

import httpx
import pytest

from serving.bundle import Bundle
from serving.clients.wire import WIRES
from serving.server_plan import Endpoint
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from tests.bursts import burst

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def triton(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Eight pictures have a place: four that wait, and a batch that runs. One process decodes."""
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
    """The supervisor has asked, one picture at a time; what ran besides was the warm-up."""
    asked = [executions(triton, ensemble) for ensemble in ("digits", "digits_v1")]
    ran = executions(triton, "digits_v1_classifier")
    assert all(set(sizes) == {1} for sizes in asked)
    assert ran[1] > sum(sizes[1] for sizes in asked)
    assert ran[4] >= 1


def test_a_burst_beyond_triton_s_bound_is_refused_without_stalls(triton: Endpoint, digits: Bundle) -> None:
    """Triton's own bound made its batcher sleep for 500 ms at a time; ours must not."""
    requests = [WIRES["triton"]("digits", 1).request(digits.golden_pictures()[0][1], 1)] * 128

    def longest_pause() -> float:
        answers = burst(triton.url, requests)
        assert {answer.code for answer in answers} == {200, 503}
        came = sorted(answer.came for answer in answers)
        return max(later - earlier for earlier, later in itertools.pairwise(came))

    # Those stalls came in every burst; on a busy machine anything may pause once.
    assert min(longest_pause() for _ in range(4)) < 0.45
