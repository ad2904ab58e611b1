"""The agreement of worker processes: the desired state, and how workers reconcile with it."""

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import BundleError, RequestError, UnavailableError, UnknownModelError
from bundle.store import Bundle, read_bundle
from serving.deployment import Deployment
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.models import agreement as agreement_module
from serving.fastapi_server.models.agreement import Agreement
from serving.fastapi_server.models.desired_state import (
    ActualState,
    DesiredBundle,
    DesiredState,
    StateFolder,
    ready_workers,
)
from serving.fastapi_server.models.hosting import HostedModel, Hosting
from serving.settings import ServingSettings
from tests.serving.fastapi_server.waiting import wait_until

# Two process ids that exist.
FIRST, SECOND = os.getpid(), os.getppid()


@pytest.fixture(autouse=True)
def _fast_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_module, "_POLL_S", 0.005)
    monkeypatch.setattr(agreement_module, "_RETRY_S", 0.01)


class Workers:
    """Workers in one process, each with its own models, that share a state folder."""

    def __init__(self, bundles: Path, folder: Path) -> None:
        folder.mkdir()
        self.settings = ServingSettings(
            bundles=bundles, models=("digits:1",), workers=2, threads=1, start_timeout_s=5
        ).of("fastapi")
        self.folder = StateFolder(folder)
        self.folder.write_desired(DesiredState.of(Deployment.of(self.settings)))
        self.hosting: dict[int, Hosting] = {}
        self.agreement: dict[int, Agreement] = {}

    async def join(self, pid: int) -> Agreement:
        self.hosting[pid] = Hosting(self.settings, Metrics())
        self.agreement[pid] = Agreement(self.hosting[pid], self.settings, self.folder.path, pid)
        await self.agreement[pid].join()
        return self.agreement[pid]

    def loaded(self) -> list[list[str]]:
        return [hosting.names() for hosting in self.hosting.values()]

    def defaults(self) -> list[int]:
        return [hosting.find("digits").bundle.manifest.version for hosting in self.hosting.values()]

    async def close(self) -> None:
        for agreement in self.agreement.values():
            await agreement.leave()
        for hosting in self.hosting.values():
            await hosting.close()


@pytest.fixture
def workers(digits: Bundle, other_weights: Bundle, tmp_path: Path) -> Workers:
    """digits:1 is served; digits:2 is on disk."""
    for version, bundle in ((1, digits), (2, other_weights)):
        place = Path(shutil.copytree(bundle.path, tmp_path / "bundles" / "digits" / str(version)))
        manifest = place / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": version}))
    return Workers(tmp_path / "bundles", tmp_path / "state")


def run(workers: Workers, test: Callable[[], Awaitable[None]]) -> None:
    async def closing() -> None:
        try:
            await asyncio.wait_for(test(), 30)
        finally:
            await workers.close()

    asyncio.run(closing())


def refuse_to_load(monkeypatch: pytest.MonkeyPatch, hosting: Hosting, error: Exception) -> None:
    """This worker can load no further version."""

    async def refuse(bundle: DesiredBundle) -> None:
        if (bundle.model, bundle.version) not in hosting._models:
            raise error

    monkeypatch.setattr(hosting, "_load", refuse)


# --- the desired state


def test_the_state_at_the_start_is_the_deployment(digits: Bundle) -> None:
    state = DesiredState.of(Deployment((digits, replace(digits, manifest=_version(digits, 3)))))
    assert state.default_model == "digits"
    assert state.default_versions == {"digits": 3}
    assert [bundle.name for bundle in state.bundles] == ["digits:1", "digits:3"]
    assert DesiredState.model_validate_json(state.model_dump_json()) == state


def test_every_change_has_the_next_revision(digits: Bundle) -> None:
    state = DesiredState.of(Deployment((digits,)))
    second = DesiredBundle.of(digits).model_copy(update={"version": 2})
    pending = state.next(pending=second)
    assert (pending.revision, pending.bundles, pending.default_versions) == (1, state.bundles, {"digits": 1})
    beside = pending.accept(second, make_default=False)
    assert (beside.revision, beside.pending, beside.default_versions) == (2, None, {"digits": 1})
    assert [bundle.name for bundle in beside.bundles] == ["digits:1", "digits:2"]
    default = pending.accept(second, make_default=True)
    assert default.default_versions == {"digits": 2}
    # The highest remaining version replaces an unloaded default. Unloading another version does not change the default.
    assert default.without([second]).default_versions == {"digits": 1}
    assert default.without(state.bundles).default_versions == {"digits": 2}
    empty = state.without(state.bundles)
    assert (empty.bundles, empty.default_versions, empty.default_model) == ((), {}, "digits")
    assert empty.accept(second, make_default=False).default_versions == {"digits": 2}


def _version(bundle: Bundle, version: int) -> Any:
    return bundle.manifest.model_copy(update={"version": version})


# --- changes


def test_a_load_reaches_every_worker_before_it_returns(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        assert [first.complete] == [False]
        second = await workers.join(SECOND)
        assert [first.complete, second.complete] == [True, True]
        assert sorted(ready_workers(workers.folder.path)) == sorted([FIRST, SECOND])
        await first.load("digits", make_default=False)
        assert workers.loaded() == [["digits:1", "digits:2"]] * 2
        assert workers.defaults() == [1, 1]
        await second.load("digits", 2)
        assert workers.defaults() == [2, 2]
        await second.unload("digits", 1)
        assert workers.loaded() == [["digits:2"]] * 2
        states = workers.folder.workers()
        assert {state.loaded for state in states.values()} == {("digits:2",)}
        assert {state.revision for state in states.values()} == {workers.folder.read_desired().revision}
        await first.unload("digits")
        assert workers.loaded() == [[], []]

    run(workers, test)


def test_if_one_worker_cannot_load_a_version_all_unload_it(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        await workers.join(SECOND)
        refuse_to_load(monkeypatch, workers.hosting[SECOND], BundleError("out of memory"))
        with pytest.raises(RequestError, match="failed to load digits: out of memory"):
            await first.load("digits", 2)
        assert workers.loaded() == [["digits:1"]] * 2
        assert workers.defaults() == [1, 1]
        assert workers.folder.read_desired().pending is None

    run(workers, test)


def test_a_single_worker_needs_no_files(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        workers.hosting[0] = hosting = Hosting(workers.settings, Metrics())
        workers.agreement[0] = single = Agreement(hosting, workers.settings)
        await single.join()
        assert single.complete
        await single.load("digits")
        assert workers.defaults() == [2]
        await single.unload("digits", 2)
        assert workers.defaults() == [1]
        refuse_to_load(monkeypatch, hosting, BundleError("out of memory"))
        with pytest.raises(RequestError, match="out of memory"):
            await single.load("digits", 2)
        assert workers.loaded() == [["digits:1"]]

    run(workers, test)


def test_what_does_not_exist_is_an_unknown_model(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        revision = workers.folder.read_desired().revision
        for change in (first.load("cats"), first.load("digits", 9), first.unload("cats"), first.unload("digits", 2)):
            with pytest.raises(UnknownModelError):
                await change
        assert workers.folder.read_desired().revision == revision

    run(workers, test)


def test_damaged_files_are_refused_before_any_worker_loads_them(workers: Workers) -> None:
    (workers.settings.bundles / "digits/2/model.onnx").write_bytes(b"damaged")

    async def test() -> None:
        first = await workers.join(FIRST)
        with pytest.raises(RequestError, match="sha256 differs"):
            await first.load("digits", 2)
        assert workers.folder.read_desired().revision == 0

    run(workers, test)


def test_only_one_worker_verifies_the_files(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        verified: list[str] = []
        monkeypatch.setattr(Bundle, "verify", lambda bundle: verified.append(bundle.name))
        first = await workers.join(FIRST)
        await workers.join(SECOND)
        await first.load("digits", 2, make_default=False)
        await first.load("digits", 2)  # it is loaded: only the default changes
        assert verified == ["digits:2"]
        assert workers.defaults() == [2, 2]

    run(workers, test)


def test_simultaneous_changes_are_made_one_after_the_other(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        second = await workers.join(SECOND)
        await asyncio.gather(
            *(change for one in (first, second) for change in (one.load("digits", 2), one.load("digits", 1)))
        )
        assert workers.loaded() == [["digits:1", "digits:2"]] * 2
        assert len(set(workers.defaults())) == 1

    run(workers, test)


def test_a_replaced_bundle_is_loaded_again(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        await workers.join(SECOND)
        before = [hosting.find("digits") for hosting in workers.hosting.values()]
        manifest = workers.settings.bundles / "digits/1/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": "2026-01-01T00:00:00Z"}))
        await first.load("digits", 1)
        after = [hosting.find("digits") for hosting in workers.hosting.values()]
        assert all(new is not old for new, old in zip(after, before, strict=True))
        assert workers.loaded() == [["digits:1"]] * 2

    run(workers, test)


# --- workers that start, die or are slow


def test_a_late_worker_has_the_same_models_before_it_is_ready(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        await first.load("digits", 2)
        await first.unload("digits", 1)
        shutil.rmtree(workers.settings.bundles / "digits/1")
        await workers.join(SECOND)
        assert workers.loaded() == [["digits:2"]] * 2
        assert workers.defaults() == [2, 2]

    run(workers, test)


def test_a_worker_that_cannot_load_the_models_does_not_start(workers: Workers) -> None:
    async def test() -> None:
        await workers.join(FIRST)
        manifest = workers.settings.bundles / "digits/1/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": "2026-01-01T00:00:00Z"}))
        with pytest.raises(BundleError, match="has changed on disk"):
            await workers.join(SECOND)
        assert ready_workers(workers.folder.path) == [FIRST]

    run(workers, test)


def test_a_change_waits_for_a_worker_that_is_starting(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        workers.folder.write_actual(SECOND, ActualState())  # registered, and still loading
        change = asyncio.create_task(first.load("digits", 2))
        await wait_until(lambda: workers.hosting[FIRST].versions("digits") == [1, 2])
        assert not change.done()
        await workers.join(SECOND)
        await change
        assert workers.defaults() == [2, 2]

    run(workers, test)


def test_a_worker_that_dies_during_a_change_is_not_waited_for(workers: Workers) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:

        async def test() -> None:
            first = await workers.join(FIRST)
            workers.folder.write_actual(other.pid, ActualState(revision=0, ready=True))
            change = asyncio.create_task(first.load("digits", 2))
            await wait_until(lambda: workers.hosting[FIRST].versions("digits") == [1, 2])
            assert not change.done()
            other.kill()
            other.wait(10)
            await change
            assert workers.defaults() == [2]
            assert ready_workers(workers.folder.path) == [FIRST]

        run(workers, test)


def test_a_worker_that_does_not_finish_undoes_the_change(workers: Workers) -> None:
    async def test() -> None:
        workers.settings.__dict__["start_timeout_s"] = 0.2
        first = await workers.join(FIRST)
        workers.folder.write_actual(SECOND, ActualState(revision=0, ready=True))  # it does not follow
        with pytest.raises(UnavailableError, match=f"workers \\[{SECOND}\\] did not finish within 0.2 s"):
            await first.load("digits", 2)
        await wait_until(lambda: workers.loaded() == [["digits:1"]])

    run(workers, test)


def test_a_change_of_a_killed_worker_is_undone(workers: Workers) -> None:
    """The lock is free, since the kernel releases it; the pending version is dropped by the worker that starts next."""
    two = DesiredBundle.of(read_bundle(workers.settings.bundles / "digits/2"))

    async def test() -> None:
        await workers.join(FIRST)
        workers.folder.write_desired(workers.folder.read_desired().next(pending=two))
        await wait_until(lambda: workers.loaded() == [["digits:1", "digits:2"]])
        await workers.join(SECOND)
        assert workers.hosting[SECOND].names() == ["digits:1"]
        await wait_until(lambda: workers.loaded() == [["digits:1"]] * 2)

    run(workers, test)


def test_a_starting_worker_does_not_undo_a_change_in_progress(workers: Workers) -> None:
    two = DesiredBundle.of(read_bundle(workers.settings.bundles / "digits/2"))

    async def test() -> None:
        with workers.folder.try_lock() as locked:
            assert locked
            workers.folder.write_desired(workers.folder.read_desired().next(pending=two))
            await workers.join(FIRST)
            assert workers.folder.read_desired().pending == two
            assert workers.loaded() == [["digits:1", "digits:2"]]
            assert workers.defaults() == [1]

    run(workers, test)


def test_a_change_fails_if_the_lock_stays_taken(workers: Workers) -> None:
    async def test() -> None:
        workers.settings.__dict__["start_timeout_s"] = 0.05
        first = await workers.join(FIRST)
        with workers.folder.try_lock(), pytest.raises(UnavailableError, match="another change"):
            await first.unload("digits")

    run(workers, test)


@pytest.mark.parametrize("method", ["read_desired", "write_actual"])
def test_a_worker_follows_again_after_an_os_error(
    method: str, workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        second = await workers.join(SECOND)
        failed: list[None] = []
        original = getattr(StateFolder, method)

        def failing(self: StateFolder, *arguments: Any) -> Any:
            if self is second._folder and len(failed) < 3:
                failed.append(None)
                raise OSError(errno.EMFILE, "too many open files")
            return original(self, *arguments)

        monkeypatch.setattr(StateFolder, method, failing)
        await first.load("digits", 2)
        assert len(failed) == 3
        assert workers.defaults() == [2, 2]
        assert "cannot follow the desired state" in caplog.text

    run(workers, test)


def test_a_worker_without_file_descriptors_refuses_a_version(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        await workers.join(SECOND)

        async def fail(*_: object) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(HostedModel, "load", fail)
            with pytest.raises(RequestError, match="too many open files"):
                await first.load("digits", 2)
        await first.load("digits", 2)  # the followers still run
        assert workers.defaults() == [2, 2]

    run(workers, test)


def test_a_worker_that_leaves_is_not_waited_for(workers: Workers) -> None:
    async def test() -> None:
        first = await workers.join(FIRST)
        second = await workers.join(SECOND)
        await second.leave()
        await first.load("digits", 2)
        assert workers.hosting[FIRST].versions("digits") == [1, 2]
        assert ready_workers(workers.folder.path) == [FIRST]

    run(workers, test)
