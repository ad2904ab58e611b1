"""The composed stack, once for all tests of this folder."""

from collections.abc import Iterator

import httpx
import pytest

from serving.clients.endpoint import SERVERS
from tests.compose.composed import Composed, ask, composed, engine_fault


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    fault = engine_fault()
    if fault:
        pytest.skip(fault)
    with composed(tmp_path_factory.mktemp("compose")) as running:
        yield running


@pytest.fixture(scope="session")
def edge(stack: Composed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.edge, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def undisturbed(stack: Composed, edge: httpx.Client) -> Iterator[None]:
    """What happens in the test must not end a server, and all answer afterwards."""
    before = {server: stack.container(server)["State"]["StartedAt"] for server in SERVERS}
    yield
    for server in SERVERS:
        assert ask(edge, server).status_code == 200, server
        assert stack.container(server)["State"]["StartedAt"] == before[server], f"{server} was restarted"
