"""A real Triton laid out as in the public image, with an onnxruntime backend: the image model calls that classifier."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bundle.store import Bundle
from serving.clients.dialect import dialect_of
from serving.servers.server import server_class
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from serving.stack.state import STACK, StackState
from serving.triton_server.environment import prepare_backends
from serving.verify.checks import all_passed, verify
from tests.bursts import burst

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's Triton in the image's layout, and a stand-in for the native backend."""
    home = tmp_path_factory.mktemp("tritonserver")
    triton = prepare_backends(ServingSettings().of("triton"), home / "backends")
    (home / "backends/onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), home / "backends/onnxruntime/model.py")
    (home / "bin").mkdir()
    start = home / "bin/tritonserver"
    variables = [f"export {name}='{value}'\n" for name, value in triton.variables.items()]
    start.write_text(f'#!/bin/sh\n{"".join(variables)}exec {triton.server / "bin/tritonserver"} "$@"\n')
    start.chmod(0o755)
    return home


@pytest.fixture(scope="module")
def stack(home: Path, digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    settings = ServingSettings(
        bundles=digits.path.parents[1],
        models=(str(digits.path),),
        triton_home=home,
        threads=2,
        max_batch_size=4,
        queue_delay_ms=1,
    )
    with running_stack(settings, ["triton"], tmp_path_factory.mktemp("native")) as state:
        yield state


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_verify_is_green(stack: StackState, digits: Bundle, protocol: str) -> None:
    (endpoint,) = stack.endpoints()
    checks = verify(endpoint, protocol, digits, stack.settings)  # type: ignore[arg-type]
    assert all_passed(checks), [check for check in checks if check.passed is False]


def test_it_reports_its_settings(stack: StackState) -> None:
    server = server_class("triton")(stack.settings, stack.deployment(), STACK / "triton")
    assert server.effective_settings() == server.expected_settings()


def test_the_native_classifier_computes_in_batches(stack: StackState, digits: Bundle) -> None:
    (endpoint,) = stack.endpoints()
    wire = dialect_of("triton").http("digits", 1)

    def classified() -> tuple[int, int]:
        (stats,) = httpx.get(f"{endpoint.url}/v2/models/digits_v1_classifier/stats").json()["model_stats"]
        return stats["inference_count"], stats["execution_count"]

    before = classified()
    images = [data for _, data in digits.golden_inputs()] * 4
    answers = burst(endpoint.url, [wire.request(image) for image in images])
    assert {answer.code for answer in answers} == {200}
    after = classified()
    assert after[0] - before[0] >= len(images)
    assert after[1] - before[1] < len(images)
