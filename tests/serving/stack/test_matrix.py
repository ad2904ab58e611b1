"""Triton with every runtime, and two versions at once; OpenVINO on the other two servers.

The other combinations have tests of their own: onnxruntime on all three servers in test_servers.py, TorchScript on all three
in test_guarded.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.clients.endpoint import Protocol
from serving.servers.server import server_class
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from serving.stack.state import STACK, StackState
from serving.verify.checks import all_passed, verify
from tests.answers import golden_faults
from tests.workplace import bundle_as, endpoint_of, leftovers_of, processes_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def versions(digits: Bundle, folder: Path) -> list[Bundle]:
    """`digits:1` and `digits:2`, which have the same weights."""
    return [bundle_as(version, digits, folder / "artifacts" / "bundles") for version in (1, 2)]


@pytest.fixture(
    scope="module",
    params=["onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torchscript", "openvino"))],
)
def triton(request: pytest.FixtureRequest, folder: Path, versions: list[Bundle]) -> Iterator[StackState]:
    settings = ServingSettings(
        bundles=folder / "artifacts" / "bundles",
        models=tuple(bundle.name for bundle in versions),
        runtime=request.param,
        threads=1,
    )
    with running_stack(settings, ["triton"], folder / "artifacts" / "stack") as state:
        yield state
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


def test_verify_is_green_for_both_versions(triton: StackState, versions: list[Bundle]) -> None:
    protocols: tuple[Protocol, Protocol] = ("http", "grpc")
    for bundle, protocol in zip(versions, protocols, strict=True):
        checks = verify(
            endpoint_of(triton, "triton"), protocol, bundle, triton.settings, is_default=bundle is versions[-1]
        )
        assert all_passed(checks), [check for check in checks if check.passed is False]


def test_the_version_that_was_named_last_is_the_default(triton: StackState, versions: list[Bundle]) -> None:
    assert golden_faults(triton.endpoints(), versions[-1]) == []


def test_it_reports_its_runtime(triton: StackState) -> None:
    server = server_class("triton")(triton.settings, triton.deployment(), STACK / "triton")
    assert server.effective_settings()["runtime"] == triton.settings.runtime


def test_openvino_on_fastapi_and_torchserve(digits: Bundle, bundles: Path, tmp_path: Path) -> None:
    settings = ServingSettings(bundles=bundles, models=(digits.name,), runtime="openvino", workers=1, threads=1)
    with running_stack(settings, ["fastapi", "torchserve"], tmp_path / "stack") as state:
        assert golden_faults(state.endpoints(), digits) == []
        checks = verify(endpoint_of(state, "fastapi"), "http", digits, state.settings)
        checks += verify(endpoint_of(state, "torchserve"), "http", digits, state.settings)
        assert all_passed(checks), [check for check in checks if check.passed is False]
        for name in state.servers:
            server = server_class(name)(state.settings, state.deployment(), STACK / name)
            assert server.effective_settings()["runtime"] == "openvino"
    assert processes_of(tmp_path) == []
