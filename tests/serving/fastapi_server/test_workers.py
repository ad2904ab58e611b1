"""The FastAPI service with two worker processes, as it is started in production."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from bundle.store import Bundle
from serving.servers.fastapi import missing_workers
from serving.settings import ServingSettings
from serving.stack.ports import free_ports
from tests.load import Load
from tests.serving.fastapi_server.waiting import wait_for

pytestmark = pytest.mark.integration


@dataclass
class Running:
    """The parent process, its URL, and its folders."""

    process: subprocess.Popen[str]
    url: str
    image: bytes
    log: Path
    temporary: Path
    bundles: Path

    @property
    def repository(self) -> str:
        return f"{self.url}/v2/repository/models/digits"

    def predict(self) -> httpx.Response:
        """One request on a new connection, which may go to any worker."""
        return httpx.post(f"{self.url}/predict", content=self.image, timeout=20)

    def answering_versions(self) -> set[int]:
        """The versions that answer, in any worker."""
        return {self.predict().json()["version"] for _ in range(20)}

    def change(self, action: str, version: int, **parameters: object) -> httpx.Response:
        """Load or unload a version."""
        body = {"parameters": {"version": version, **parameters}}
        return httpx.post(f"{self.repository}/{action}", json=body, timeout=60)

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return [child.pid for child in psutil.Process(self.process.pid).children() if _is_worker(child)]

    def is_ready(self) -> bool:
        """Whether all workers are ready."""
        assert self.process.poll() is None, self.log.read_text()
        return missing_workers(2, self.temporary) is None


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended; ZombieProcess is a subclass
        return False


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def two_workers(digits: Bundle, other_weights: Bundle, folder: Path) -> Iterator[Running]:
    """The service with digits:1 and two workers; digits:2 is on disk."""
    for version, bundle in ((1, digits), (2, other_weights)):
        place = Path(shutil.copytree(bundle.path, folder / "bundles" / "digits" / str(version)))
        manifest = place / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": version}))
    ports = free_ports()
    settings = ServingSettings(bundles=folder / "bundles", models=("digits:1",), workers=2, threads=1, ports=ports)
    log, temporary = folder / "log", folder / "tmp"
    temporary.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.fastapi_server"],
            env=os.environ | settings.as_environment() | {"TMPDIR": str(temporary)},
            stdout=output,
            stderr=output,
            text=True,
        )
    url = f"http://127.0.0.1:{ports.fastapi}"
    running = Running(process, url, digits.golden_inputs()[0][1], log, temporary, folder / "bundles")
    try:
        wait_for(running.is_ready, 180)
        wait_for(lambda: _responds(f"{url}/v2/health/ready"), 180)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait(10)


def _responds(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def shared(digits: Bundle, other_weights: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for all tests that leave it as it was: digits:1 loaded, and two workers."""
    with two_workers(digits, other_weights, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def running(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> Iterator[Running]:
    """A service of its own, for a test that ends its processes or damages its files."""
    with two_workers(digits, other_weights, tmp_path) as running:
        yield running


class Clients(Load):
    """Four clients that send requests until the end of the block."""

    def __init__(self, running: Running) -> None:
        super().__init__([self._predict] * 4)
        self.faults: list[str] = []
        self.answers = 0
        self.versions: set[int] = set()
        self._running = running

    def _predict(self) -> None:
        try:
            response = self._running.predict()
        except httpx.HTTPError as error:
            self.faults.append(repr(error))
            return
        self.answers += 1
        if response.status_code == 200:
            self.versions.add(response.json()["version"])
        else:
            self.faults.append(str(response.status_code))


def metric(running: Running, name: str) -> float:
    """The value of a metric; 0 if there is none yet."""
    text = httpx.get(f"{running.url}/metrics").text
    values = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(values[0]) if values else 0.0


# --- one service for all of these


def test_metrics_cover_all_workers(shared: Running) -> None:
    name = 'trident_requests_total{code="200",model="digits"}'
    before = metric(shared, name)
    for _ in range(60):
        assert shared.predict().status_code == 200
    wait_for(lambda: metric(shared, name) == before + 60)  # the other worker has flushed its metrics
    assert {metric(shared, name) for _ in range(5)} == {before + 60}
    assert metric(shared, 'trident_queue_depth{model="digits"}') == 0
    assert metric(shared, "trident_requests_in_flight") == 0


def test_loading_and_unloading_reach_every_worker_and_lose_no_request(shared: Running) -> None:
    assert shared.answering_versions() == {1}
    with Clients(shared) as clients:
        assert httpx.post(f"{shared.repository}/load", timeout=60).status_code == 200  # the highest version
        assert shared.answering_versions() == {2}
        assert shared.change("load", 1).status_code == 200
        assert shared.answering_versions() == {1}
        assert shared.change("unload", 2).status_code == 200
    assert clients.faults == []
    assert clients.versions == {1, 2}


def test_unknown_models_and_versions_are_404(shared: Running) -> None:
    assert httpx.post(f"{shared.url}/v2/repository/models/cats/load", timeout=60).status_code == 404
    assert shared.change("load", 9).status_code == 404
    assert shared.change("unload", 2).status_code == 404


def test_a_version_that_cannot_be_loaded_changes_no_worker(shared: Running) -> None:
    weights = shared.bundles / "digits/2/model.onnx"
    complete = weights.read_bytes()
    weights.write_bytes(b"broken")
    refused = shared.change("load", 2)
    weights.write_bytes(complete)
    assert refused.status_code == 400
    assert "sha256 differs" in refused.json()["detail"]
    assert shared.answering_versions() == {1}
    assert httpx.get(f"{shared.url}/v2/models/digits").json()["versions"] == ["1"]


# --- a service of its own for each of these


def test_a_killed_worker_is_replaced_with_the_present_models(running: Running) -> None:
    """The bundle that the service started with has been unloaded and deleted meanwhile."""
    running.change("load", 2).raise_for_status()
    running.change("unload", 1).raise_for_status()
    shutil.rmtree(running.bundles / "digits/1")
    killed = running.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: "1 of 2 workers" in str(missing_workers(2, running.temporary)), 180)
    wait_for(running.is_ready, 180)
    assert len(running.workers()) == 2
    assert killed not in running.workers()
    assert running.answering_versions() == {2}


def test_a_worker_that_cannot_start_does_not_affect_the_others(running: Running) -> None:
    weights = running.bundles / "digits/1/model.onnx"
    complete = weights.read_bytes()
    weights.write_bytes(b"broken")
    killed, other = running.workers()
    os.kill(killed, signal.SIGKILL)

    def has_failed_twice() -> bool:
        assert {running.predict().status_code for _ in range(5)} == {200}
        return running.log.read_text().count("has ended with exit code 3") >= 2

    wait_for(has_failed_twice, 180)
    weights.write_bytes(complete)
    wait_for(running.is_ready, 180)
    assert other in running.workers()


def test_sighup_replaces_the_workers_without_losing_a_request(running: Running) -> None:
    running.change("load", 2).raise_for_status()
    before = set(running.workers())
    with Clients(running) as clients:
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not set(running.workers()) & before, 180)
    assert clients.faults == []
    assert clients.answers > 20
    assert clients.versions == {2}  # a new worker has the present models before it accepts requests
    assert len(running.workers()) == 2


def test_sigterm_under_load_answers_what_was_accepted_and_leaves_nothing(running: Running) -> None:
    workers = running.workers()
    assert list(running.temporary.glob("trident*"))
    with Clients(running) as clients:
        wait_for(lambda: clients.answers > 20)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) in (0, -signal.SIGTERM)
    # New connections are refused once it has stopped; no accepted request gets an error.
    assert not [fault for fault in clients.faults if fault.isdecimal()]
    assert all(_has_ended(pid) for pid in workers)
    assert list(running.temporary.glob("trident*")) == []


def test_workers_do_not_outlive_a_killed_parent(running: Running) -> None:
    workers = running.workers()
    running.process.kill()
    wait_for(lambda: all(_has_ended(pid) for pid in workers), 20)


def test_a_service_whose_workers_cannot_start_ends_with_an_error(digits: Bundle, tmp_path: Path) -> None:
    settings = ServingSettings(models=(str(digits.path),), workers=2, threads=1, precision="int8", ports=free_ports())
    command = [sys.executable, "-m", "serving.fastapi_server"]
    done = subprocess.run(
        command, env=os.environ | settings.as_environment() | {"TMPDIR": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert b"int8" in done.stderr
    assert list(tmp_path.iterdir()) == []
