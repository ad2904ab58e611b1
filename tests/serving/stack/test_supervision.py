"""What the supervisor does about servers that are broken without having ended: with a fake server, and fake control."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bundle.errors import DeadlineExceededError, OverloadedError, TridentError, UnavailableError
from bundle.golden import Fault
from bundle.schemas import problem
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, ServerName
from serving.servers.server import EffectiveSettings, Server, StartCommand
from serving.settings import ServingSettings
from serving.stack import supervisor as module
from serving.stack.ports import free_ports
from serving.stack.state import ServerState, read_state
from serving.stack.supervisor import Supervisor
from serving.stack.timing import SupervisionTiming
from tests.serving.golden_client import golden_answer
from tests.waiting import wait_until

# Speaks FastAPI's protocol and gives the golden answer of the first image, until a file `hang` or `wrong` appears, or
# `refuse` with a status and a body; its refusals are counted in `refused`.
FAKE = """
import json, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
folder, port, answer = pathlib.Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if (folder / "hang").exists():
            (folder / "hang").unlink()
            time.sleep(600)
        if (folder / "wrong").exists():
            answer["predictions"][0]["probability"] = 0.0
        body = json.dumps(answer).encode()
        status = 200
        if (folder / "refuse").exists():
            status, body = (folder / "refuse").read_bytes().split(b" ", 1)
            with (folder / "refused").open("a") as file:
                file.write(".")
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
time.sleep(600 if (folder / "never").exists() else 0)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


PORT = free_ports().fastapi
FAST = SupervisionTiming(poll_s=0.02, watch_s=0.05, canary_s=0.1)


class FakeServer(Server):
    """Has a fault as long as a file `broken` is there, and repairs it by removing that; but never one in `hopeless`."""

    name: ClassVar[ServerName] = "fastapi"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(server="fastapi", url=f"http://127.0.0.1:{PORT}", metrics_url="")

    @property
    def stop_timeout_s(self) -> float:
        return 1.0

    def prepare(self) -> None: ...

    def start_command(self) -> StartCommand:
        (bundle,) = self.deployment
        answer = golden_answer(bundle, bundle.golden_inputs()[0][1]).model_dump_json()
        argv = (sys.executable, "-c", FAKE, str(self.folder.parent), str(PORT), answer)
        return StartCommand(argv, {}, self.folder)

    def is_up(self) -> bool:
        return True

    def load(self, bundle: Bundle) -> None: ...

    def make_default(self, bundle: Bundle) -> None: ...

    def unload(self, bundle: Bundle) -> None: ...

    def probe(self) -> Fault | None:
        folder = self.folder.parent
        broken = (folder / "broken").exists() or (folder / "hopeless").exists()
        return Fault("server", "a part is dead") if broken else None

    def repair(self) -> str | None:
        if self.probe() is None:
            return None
        (self.folder.parent / "broken").unlink(missing_ok=True)
        return "replaced it"

    def predictions_served(self, bundle: Bundle) -> float | None:
        """Grows as long as a file `others` is there: every call adds a dot to it."""
        others = self.folder.parent / "others"
        if not others.exists():
            return 0.0
        with others.open("a") as file:
            file.write(".")
        return float(others.stat().st_size)

    def effective_settings(self) -> EffectiveSettings:
        return {}


@pytest.fixture
def supervise(
    digits: Bundle, settings: ServingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Supervise":
    """Run a supervisor of the fake server; `story` is called, in a thread, with its folder."""
    monkeypatch.setattr(module, "server_class", lambda _: FakeServer)

    def run(
        story: Callable[[Path], Any],
        start_timeout_s: float = 60,
        request_timeout_s: float = 1,
        timing: SupervisionTiming = FAST,
    ) -> None:
        async def both() -> None:
            timeouts = {"request_timeout_s": request_timeout_s, "start_timeout_s": start_timeout_s}
            supervisor = Supervisor(tmp_path, ["fastapi"], settings.model_copy(update=timeouts), timing)
            running = asyncio.create_task(supervisor.run())
            try:
                await asyncio.to_thread(story, tmp_path)
            finally:
                supervisor.stop.set()
                await running

        asyncio.run(both())

    return run


def until(folder: Path, condition: Callable[[ServerState], bool]) -> ServerState:
    def found() -> ServerState | None:
        state = read_state(folder)
        return state.servers["fastapi"] if state is not None and condition(state.servers["fastapi"]) else None

    return wait_until(found, shown=lambda: read_state(folder))


Supervise = Callable[..., None]


def test_a_repair_needs_no_restart(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        (folder / "broken").touch()
        state = until(folder, lambda server: server.repairs == 1)
        assert (state.phase, state.message) == ("degraded", "a part is dead: replaced it")
        state = until(folder, lambda server: server.phase == "ready")
        assert (state.pid, state.restarts, state.message) == (pid, 0, "")

    supervise(story)


@pytest.mark.parametrize("fault", ["hang", "wrong"])
def test_a_server_without_a_right_answer_is_started_again(supervise: Supervise, fault: str) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        (folder / fault).touch()
        until(folder, lambda server: server.phase == "degraded")
        until(folder, lambda server: server.phase == "restarting")
        (folder / "wrong").unlink(missing_ok=True)
        state = until(folder, lambda server: server.phase == "ready")
        assert state.pid != pid
        assert state.restarts == 1

    supervise(story)


def refuse(folder: Path, status: int, body: str) -> None:
    (folder / "refuse.draft").write_text(f"{status} {body}")
    (folder / "refuse.draft").rename(folder / "refuse")


def until_refused(folder: Path, times: int) -> None:
    refused = folder / "refused"
    wait_until(lambda: refused.exists() and refused.stat().st_size >= times)


FULL = 'Model "digits" Version 1 has no worker to serve inference request.'  # TorchServe's, also of a full queue


@pytest.mark.parametrize("error", [OverloadedError, UnavailableError, DeadlineExceededError])
def test_a_server_under_load_is_left_alone(supervise: Supervise, error: type[TridentError]) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        refuse(folder, error.status, problem(error.status, error.kind, error.title, "...").model_dump_json())
        until_refused(folder, FAST.max_failed_canaries + 2)
        state = until(folder, lambda _: True)
        assert (state.phase, state.pid, state.restarts) == ("ready", pid, 0)

    supervise(story)


@pytest.mark.parametrize("body", [FULL, "Prediction failed"])
def test_a_503_of_a_server_that_answers_no_request_is_a_fault(supervise: Supervise, body: str) -> None:
    def story(folder: Path) -> None:
        until(folder, lambda server: server.phase == "ready")
        refuse(folder, 503, body)
        until(folder, lambda server: server.phase == "restarting")

    supervise(story)


def test_a_server_that_lacks_workers_has_time_to_get_them(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        (folder / "hopeless").touch()
        refuse(folder, 503, FULL)
        until_refused(folder, FAST.max_failed_canaries + 2)
        state = until(folder, lambda _: True)
        assert (state.phase, state.pid, state.restarts) == ("degraded", pid, 0)

    supervise(story)


def test_a_full_queue_of_a_server_that_answers_others_is_none(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        (folder / "others").write_text(".")
        refuse(folder, 503, FULL)
        until_refused(folder, FAST.max_failed_canaries + 2)
        state = until(folder, lambda _: True)
        assert (state.phase, state.pid, state.restarts) == ("ready", pid, 0)

    supervise(story)


def test_a_server_that_is_busy_as_soon_as_it_is_back_is_ready(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        state = until(folder, lambda server: server.phase == "ready")
        refuse(folder, 429, "")
        assert state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
        until(folder, lambda server: server.phase == "ready" and server.pid not in (None, state.pid))

    supervise(story, start_timeout_s=5)


def test_a_server_whose_repairs_fail_is_restarted(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        until(folder, lambda server: server.phase == "ready")
        (folder / "hopeless").touch()
        state = until(folder, lambda server: server.phase == "restarting")
        assert state.repairs > 0

    supervise(story, start_timeout_s=2)


def test_a_bundle_that_is_gone_and_a_full_disk_do_not_end_a_server(
    supervise: Supervise, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        monkeypatch.setattr(Bundle, "file", lambda *_: Path("/nowhere"))
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_state", full_disk)
            (folder / "broken").touch()
            wait_until(lambda: not (folder / "broken").exists())
            refuse(folder, 429, "")
            until_refused(folder, 2)
        (folder / "broken").touch()
        state = until(folder, lambda server: server.repairs == 2)
        assert (state.pid, state.restarts) == (pid, 0)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    supervise(story)


@pytest.mark.timeout(60)
def test_a_golden_request_without_an_answer_does_not_delay_the_stop(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        until(folder, lambda server: server.phase == "ready")
        (folder / "hang").touch()
        wait_until(lambda: not (folder / "hang").exists())  # from here on no request is answered

    supervise(story, request_timeout_s=300)


def test_a_server_that_answers_others_is_left_alone(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        pid = until(folder, lambda server: server.phase == "ready").pid
        others = folder / "others"
        others.touch()
        (folder / "hang").touch()
        wait_until(lambda: not (folder / "hang").exists())  # from here on no request is answered
        asked = others.stat().st_size
        wait_until(lambda: others.stat().st_size >= asked + 3)  # one silent request is over, the next one is sent
        state = until(folder, lambda _: True)
        assert (state.phase, state.pid, state.restarts) == ("ready", pid, 0)
        others.unlink()
        until(folder, lambda server: server.phase == "restarting")

    supervise(story, timing=FAST.model_copy(update={"max_failed_canaries": 1}))


def test_a_signal_without_a_request_is_no_rollout(
    settings: ServingSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        supervisor = Supervisor(tmp_path, [], settings)
        running = asyncio.create_task(supervisor.run())
        for _ in range(2):
            supervisor.rollout_requested.set()
            await asyncio.sleep(0.1)
        assert not running.done()
        assert supervisor.state.rollout is None
        supervisor.stop.set()
        await running

    asyncio.run(story())
    assert caplog.text.count("a rollout was requested, but there is no request") == 2


def test_a_start_that_hangs_is_killed_at_its_deadline(supervise: Supervise) -> None:
    def story(folder: Path) -> None:
        (folder / "never").touch()
        state = until(folder, lambda server: server.phase == "failed")
        assert "not ready after 1 s" in state.message

    supervise(story, start_timeout_s=1)
