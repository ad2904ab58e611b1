"""Triton's python classifier, which runs our own runtimes, with two versions at once.

The other combinations have tests of their own: onnxruntime on all three servers in test_servers.py, TorchScript on all three
in test_guarded.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, Protocol
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from serving.verify.checks import all_passed, verify
from tests.answers import golden_faults
from tests.workplace import bundle_as, leftovers_of, processes_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def versions(digits: Bundle, folder: Path) -> list[Bundle]:
    """`digits:1` and `digits:2`, which have the same weights."""
    return [bundle_as(version, digits, folder / "artifacts" / "bundles") for version in (1, 2)]


@pytest.fixture(scope="module", params=["onnxruntime", pytest.param("torchscript", marks=pytest.mark.slow)])
def triton(
    request: pytest.FixtureRequest, folder: Path, versions: list[Bundle]
) -> Iterator[tuple[Endpoint, ServingSettings]]:
    settings = ServingSettings(
        bundles=folder / "artifacts" / "bundles",
        models=("digits:1", "digits:2"),
        runtime=request.param,
        triton_classifier="python",
        threads=1,
    )
    with running_stack(settings, ["triton"], folder / "artifacts" / "stack") as state:
        (endpoint,) = state.endpoints()
        yield endpoint, settings
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


def test_verify_is_green_for_both_versions(triton: tuple[Endpoint, ServingSettings], versions: list[Bundle]) -> None:
    endpoint, settings = triton
    protocols: tuple[Protocol, Protocol] = ("http", "grpc")
    for bundle, protocol in zip(versions, protocols, strict=True):
        checks = verify(endpoint, protocol, bundle, settings, is_default=bundle is versions[-1])
        assert all_passed(checks), [check for check in checks if check.passed is False]


def test_the_version_that_was_named_last_is_the_default(
    triton: tuple[Endpoint, ServingSettings], versions: list[Bundle]
) -> None:
    assert golden_faults([triton[0]], versions[-1]) == []


def test_it_reports_its_runtime(triton: tuple[Endpoint, ServingSettings], digits: Bundle) -> None:
    endpoint, settings = triton
    assert settings.runtime == XX
