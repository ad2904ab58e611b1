"""The steps of a rollout, on two fake servers that answer what the bundles say."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import DeploymentError
from bundle.schemas import Prediction
from bundle.store import Bundle
from serving.clients.client import Client
from serving.clients.endpoint import Endpoint, Protocol, ServerName
from serving.deployment import Deployment
from serving.servers.server import EffectiveSettings, Server, StartCommand
from serving.settings import ServingSettings
from serving.stack import canary, rollout
from serving.stack.rollout import roll_out
from tests.serving.golden_client import FakeClient, golden_answer


class FakeServer(Server):
    """Holds versions as a server does. `notes` are what is done to all servers: `pause_s` later on this one."""

    def __init__(
        self,
        name: ServerName,
        served: Bundle,
        settings: ServingSettings,
        notes: list[tuple[str, str]],
        pause_s: float = 0.0,
    ) -> None:
        self.name = name  # type: ignore[misc]
        super().__init__(settings, Deployment((served,)), Path())
        self.loaded, self.default = {served.manifest.version: served}, served
        self.wrong: tuple[Protocol, int | None] | None = None
        self.unload_error: Exception | None = None
        self._notes, self._pause_s = notes, pause_s

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(server=self.name, url=self.name, grpc=self.name, metrics_url=self.name)

    def prepare(self) -> None: ...

    def start_command(self) -> StartCommand:
        raise NotImplementedError

    def is_up(self) -> bool:
        return True

    def effective_settings(self) -> EffectiveSettings:
        return {}

    def load(self, bundle: Bundle) -> None:
        self._note(f"load {bundle.name}")
        self.loaded[bundle.manifest.version] = bundle

    def make_default(self, bundle: Bundle) -> None:
        self._note(f"switch to {bundle.name}")
        self.default = self.loaded[bundle.manifest.version]

    def unload(self, bundle: Bundle) -> None:
        self._note(f"unload {bundle.name}")
        if self.unload_error is not None:
            raise self.unload_error
        assert self.default.name != bundle.name
        del self.loaded[bundle.manifest.version]

    def connect(self, version: int | None, protocol: Protocol) -> Client:
        self._note("ask")

        def respond(image: bytes, top_k: int | None) -> Prediction:
            bundle = self.default if version is None else self.loaded[version]
            return golden_answer(bundle, image, top_k, wrong=self.wrong == (protocol, version))

        return FakeClient(respond)

    def _note(self, action: str) -> None:
        time.sleep(self._pause_s)
        self._notes.append((self.name, action))


class Rollout:
    """From `digits:1` to `digits:2` on FastAPI and on Triton, which is slow."""

    def __init__(self, old: Bundle, settings: ServingSettings) -> None:
        self.old, self.new = old, Bundle(old.path, old.manifest.model_copy(update={"version": 2}))
        self.settings = settings
        self.notes: list[tuple[str, str]] = []
        self.phases: list[str] = []
        self.steps: dict[str, str] = {}
        self.fastapi = FakeServer("fastapi", old, settings, self.notes)
        self.triton = FakeServer("triton", old, settings, self.notes, pause_s=0.05)
        self.servers: dict[ServerName, FakeServer] = {"fastapi": self.fastapi, "triton": self.triton}

    def connect(
        self, endpoint: Endpoint, model: str, version: int | None = None, *, protocol: Protocol = "http", **_: Any
    ) -> Client:
        return self.servers[endpoint.server].connect(version, protocol)

    def run(self) -> None:
        roll_out(self.servers, self.old, self.new, self.settings, self.phases.append, self.steps.__setitem__)

    def actions(self) -> list[tuple[str, set[str]]]:
        """What was done, and on which servers before anything else was done."""
        groups = itertools.groupby(self.notes, key=lambda note: note[1])
        return [(action, {server for server, _ in notes}) for action, notes in groups]

    def switches(self) -> list[tuple[str, str]]:
        return [note for note in self.notes if note[1].startswith("switch")]


@pytest.fixture
def faked(digits: Bundle, settings: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    made = Rollout(digits, settings)
    for module in (rollout, canary):
        monkeypatch.setattr(module, "connect", made.connect)
    return made


def test_each_step_is_done_everywhere_before_the_next_one_anywhere(faked: Rollout) -> None:
    faked.run()
    assert faked.actions() == [
        ("load digits:2", {"fastapi", "triton"}),
        ("ask", {"fastapi", "triton"}),
        ("switch to digits:2", {"fastapi"}),
        ("ask", {"fastapi"}),
        ("switch to digits:2", {"triton"}),
        ("ask", {"triton"}),
        ("unload digits:1", {"fastapi", "triton"}),
    ]
    assert faked.phases == ["loading", "verifying", "switching", "unloading"]
    assert faked.steps == {"fastapi": "done", "triton": "done"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_golden_answers_that_are_wrong_on_one_server_switch_none(protocol: Protocol, faked: Rollout) -> None:
    faked.triton.wrong = (protocol, 2)
    with pytest.raises(DeploymentError, match=rf"^triton: {protocol}: golden/00.png: probabilities differ"):
        faked.run()
    assert faked.switches() == []
    assert [list(server.loaded) for server in faked.servers.values()] == [[1], [1]]
    assert faked.steps["fastapi"] == "verified"
    assert faked.steps["triton"].startswith(f"failed: {protocol}: golden/00.png")


def test_a_wrong_answer_after_the_second_switch_brings_both_back(faked: Rollout) -> None:
    faked.triton.wrong = ("http", None)
    with pytest.raises(DeploymentError, match=r"^triton, after the switch: probabilities differ"):
        faked.run()
    assert faked.switches() == [
        ("fastapi", "switch to digits:2"),
        ("triton", "switch to digits:2"),
        ("fastapi", "switch to digits:1"),
        ("triton", "switch to digits:1"),
    ]
    assert [list(server.loaded) for server in faked.servers.values()] == [[1], [1]]


@pytest.mark.parametrize("error", [DeploymentError("it is busy"), OSError("it is busy")])
def test_an_old_version_that_stays_loaded_does_not_undo_the_switch(error: Exception, faked: Rollout) -> None:
    faked.fastapi.unload_error = error
    faked.run()
    assert faked.steps == {"fastapi": "done, but digits:1 is still loaded: it is busy", "triton": "done"}
    assert [server.default.name for server in faked.servers.values()] == ["digits:2"] * 2
    assert [list(server.loaded) for server in faked.servers.values()] == [[1, 2], [2]]
