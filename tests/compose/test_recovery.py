"""A server ends under load: it comes back by itself, the others are not touched, and the report shows the gap."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from serving.clients.endpoint import SERVERS, ServerName
from tests.compose.composed import Composed, ask, wait_for
from tests.load import Load

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


@contextmanager
def load_on_all(stack: Composed) -> Iterator[dict[str, Counter[int]]]:
    """A steady stream of requests per server through the edge; counts the answers by server and status."""
    codes: dict[str, Counter[int]] = {server: Counter() for server in SERVERS}

    def ask_and_count(edge: httpx.Client, server: str) -> None:
        codes[server][ask(edge, server).status_code] += 1
        time.sleep(0.01)

    with (
        httpx.Client(base_url=stack.edge, timeout=30, trust_env=False) as edge,
        Load([partial(ask_and_count, edge, server) for server in SERVERS]),
    ):
        yield codes


@pytest.mark.parametrize("killed", SERVERS)
def test_a_killed_server_comes_back_and_the_others_do_not_notice(stack: Composed, killed: ServerName) -> None:
    others = [server for server in SERVERS if server != killed]
    before = {server: stack.container(server)["State"]["StartedAt"] for server in SERVERS}
    with load_on_all(stack) as codes:
        wait_for(lambda: all(codes[server][200] > 20 for server in SERVERS))
        stack.kill(killed)
        wait_for(lambda: codes[killed][503] > 0)
        wait_for(lambda: stack.container(killed)["State"]["StartedAt"] != before[killed])
        stack.until_healthy(killed)
        answered = codes[killed][200]
        wait_for(lambda: codes[killed][200] > answered + 20)
    for server in others:
        assert set(codes[server]) == {200}, (server, codes[server])
        assert stack.container(server)["State"]["StartedAt"] == before[server], server


def answered(stack: Composed) -> float:
    """Requests that FastAPI has answered, by its own word: Prometheus hears of them seconds later."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    shown = stack("exec", "-T", "fastapi", "python", "-c", code)
    return sum(map(float, re.findall(r'^trident_requests_total\{code="200",.*\} (\S+)$', shown, re.MULTILINE)))


def test_the_report_shows_the_gap(stack: Composed, edge: httpx.Client) -> None:
    arguments = ["--scenario", "sweep", "--concurrency", "4", "--duration-s", "8", "--rounds", "1"]
    arguments += ["--initial-warmup-s", "0", "--warmup-s", "0.2", "--warmup-max-s", "0.2"]
    arguments += ["--url", "fastapi=http://fastapi:8000"]
    with ThreadPoolExecutor(1) as pool:
        calm = answered(stack)
        bench = pool.submit(stack, "run", "--rm", "loadtest", "bench", *arguments, check=False)
        wait_for(lambda: bench.done() or answered(stack) > calm + 1000)  # more than gate and warm-up ask
        stack.kill("fastapi")
        shown = bench.result()
    found = re.search(r"artifacts/results/(\S+)/report.html", shown)
    assert found, shown
    runs = json.loads(edge.get(f"/reports/{found[1]}/result.json").text)["runs"]
    assert sum(run["recording"]["failed"] for run in runs) > 0, "the report knows of no failed request"
    stack.until_healthy("fastapi")
