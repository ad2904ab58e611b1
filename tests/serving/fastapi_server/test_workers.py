"""The FastAPI service with two worker processes, as it is started in production."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from bundle.store import Bundle
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.models.fleet import Change, Fleet, prepare
from serving.fastapi_server.models.hosting import Hosting
from serving.fastapi_server.service import FLUSH_S
from serving.servers.fastapi import missing_workers
from serving.settings import ServingSettings
from serving.stack.ports import free_ports
from tests.load import Load

pytestmark = pytest.mark.integration


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is alive and one of ours; one that has just ended is neither."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ZombieProcess is one of these
        return False


@dataclass
class Running:
    """The parent process, and where it answers."""

    process: subprocess.Popen[str]
    url: str
    image: bytes
    log: Path
    temporary: Path

    def ask(self) -> httpx.Response:
        """One request on a new connection: any worker may get it."""
        return httpx.post(f"{self.url}/predict", content=self.image, timeout=20)

    def workers(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children() if _is_worker(child)]


@pytest.fixture
def running(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> Iterator[Running]:
    for version, bundle in ((1, digits), (2, other_weights)):
        place = Path(shutil.copytree(bundle.path, tmp_path / "bundles" / "digits" / str(version)))
        manifest = place / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": version}))
    ports = free_ports()
    settings = ServingSettings(bundles=tmp_path / "bundles", models=("digits:1",), workers=2, threads=1, ports=ports)
    log = tmp_path / "log"
    temporary = tmp_path / "tmp"
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
    running = Running(process, url, digits.golden_inputs()[0][1], log, temporary)
    try:
        deadline = time.monotonic() + 60
        while log.read_text().count("Application startup complete") < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait(10)


class Clients(Load):
    """Clients that ask until told to stop; what went wrong is kept."""

    def __init__(self, running: Running) -> None:
        super().__init__([self._ask] * 4)
        self.faults: list[str] = []
        self.answers = 0
        self.versions: set[int] = set()
        self._running = running

    def _ask(self) -> None:
        try:
            answer = self._running.ask()
        except httpx.HTTPError as error:
            self.faults.append(repr(error))
            return
        self.answers += 1
        if answer.status_code == 200:
            self.versions.add(answer.json()["version"])
        else:
            self.faults.append(str(answer.status_code))


def metric(running: Running, name: str) -> float:
    text = httpx.get(f"{running.url}/metrics").text
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


def test_one_metrics_endpoint_over_all_workers(running: Running) -> None:
    for _ in range(60):
        assert running.ask().status_code == 200
    time.sleep(2 * FLUSH_S)  # the other worker tells what it counted
    assert {metric(running, 'trident_requests_total{code="200",model="digits"}') for _ in range(5)} == {60.0}
    assert metric(running, 'trident_queue_depth{model="digits"}') == 0
    assert metric(running, "trident_requests_in_flight") == 0


def test_loading_reaches_every_worker(running: Running) -> None:
    assert {running.ask().json()["version"] for _ in range(20)} == {1}
    with Clients(running) as load:
        assert httpx.post(f"{running.url}/v2/repository/models/digits/load", timeout=60).status_code == 200
        assert {running.ask().json()["version"] for _ in range(20)} == {2}
    assert load.faults == []
    assert httpx.post(f"{running.url}/v2/repository/models/cats/load", timeout=60).status_code == 404
    os.kill(running.workers()[0], signal.SIGKILL)  # a worker that starts later catches up
    time.sleep(1)
    deadline = time.monotonic() + 90
    while len(running.workers()) < 2 or running.log.read_text().count("Application startup complete") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    assert {running.ask().json()["version"] for _ in range(20)} == {2}


def test_a_later_worker_does_without_what_was_unloaded(running: Running) -> None:
    """Its files may be gone; that must not end the service."""
    assert missing_workers(2, running.temporary) is None
    models = f"{running.url}/v2/repository/models/digits"
    httpx.post(f"{models}/load", json={"parameters": {"version": 2}}, timeout=60).raise_for_status()
    httpx.post(f"{models}/unload", json={"parameters": {"version": 1}}, timeout=60).raise_for_status()
    shutil.rmtree(running.temporary.parent / "bundles/digits/1")
    killed = running.workers()[0]
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while str(missing_workers(2, running.temporary)) != "1 of 2 workers":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while missing_workers(2, running.temporary):  # until it serves: to be alive is not enough
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(running.workers()) == 2
    assert killed not in running.workers()
    assert {running.ask().json()["version"] for _ in range(20)} == {2}


def test_a_worker_that_cannot_start_leaves_the_others_alone(running: Running) -> None:
    weights = running.temporary.parent / "bundles/digits/1/model.onnx"
    whole = weights.read_bytes()
    weights.write_bytes(b"broken")
    killed, other = running.workers()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while running.log.read_text().count("has ended with 3") < 2:
        assert {running.ask().status_code for _ in range(5)} == {200}
        assert time.monotonic() < deadline
        time.sleep(0.1)
    weights.write_bytes(whole)
    while missing_workers(2, running.temporary):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert other in running.workers()


def test_the_journal_is_replayed_as_it_was_lived(digits: Bundle, settings: ServingSettings, tmp_path: Path) -> None:
    third = replace(digits, manifest=digits.manifest.model_copy(update={"version": 3}))
    prepare(tmp_path / "fleet", {"boot": third})
    fleet = Fleet(Hosting(settings.of("fastapi"), Metrics()), settings.of("fastapi"), tmp_path / "fleet")
    load, unload = partial(Change, action="load", model="digits"), partial(Change, action="unload", model="digits")
    assert fleet._replay([]) == {"digits": (3, {3})}
    assert fleet._replay([load(version=1), load(version=2), unload(version=2)]) == {"digits": (3, {1, 3})}
    assert fleet._replay([load(version=1, make_default=False)]) == {"digits": (3, {1, 3})}
    assert fleet._replay([load(version=1), unload(), load(version=2, make_default=False)]) == {"digits": (2, {2})}
    assert fleet._replay([unload(version=3)]) == {}


def test_a_version_that_cannot_be_loaded_changes_no_worker(running: Running) -> None:
    (running.temporary.parent / "bundles/digits/2/model.onnx").write_bytes(b"broken")
    refused = httpx.post(f"{running.url}/v2/repository/models/digits/load", timeout=60)
    assert refused.status_code == 400
    assert {running.ask().json()["version"] for _ in range(20)} == {1}
    assert httpx.get(f"{running.url}/v2/models/digits").json()["versions"] == ["1"]


def test_a_service_whose_workers_cannot_start_ends_with_an_error(digits: Bundle, tmp_path: Path) -> None:
    settings = ServingSettings(models=(str(digits.path),), workers=2, threads=1, precision="int8", ports=free_ports())
    command = [sys.executable, "-m", "serving.fastapi_server"]
    done = subprocess.run(
        command, env=os.environ | settings.as_environment() | {"TMPDIR": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert b"int8" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sighup_replaces_the_workers_without_losing_a_request(running: Running) -> None:
    httpx.post(f"{running.url}/v2/repository/models/digits/load", timeout=60).raise_for_status()
    before = set(running.workers())
    with Clients(running) as load:
        running.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while set(running.workers()) & before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert load.faults == []
    assert load.answers > 20
    assert load.versions == {2}  # a new worker has caught up before it answers
    assert len(running.workers()) == 2


def test_sigterm_ends_it_with_nothing_left(running: Running) -> None:
    workers = running.workers()
    assert list(running.temporary.glob("trident*"))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) in (0, -signal.SIGTERM)
    assert not [
        pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
    assert list(running.temporary.glob("trident*")) == []


def test_workers_do_not_outlive_a_killed_parent(running: Running) -> None:
    workers = running.workers()
    running.process.kill()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
