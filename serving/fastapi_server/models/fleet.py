"""Keeps the models of all worker processes the same.

A request to load or unload reaches one worker. That one writes it into a journal; every worker (also one that is
started later) applies the journal in order and acknowledges each entry. The request is answered when all of them have.
A version that is to be the default is loaded everywhere before it becomes that anywhere.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from bundle.atomic_file import atomic_write
from bundle.errors import RequestError, TridentError, UnavailableError, UnknownModelError
from bundle.store import Bundle
from serving.fastapi_server.models.hosting import Hosting
from serving.settings import ServerSettings

log = logging.getLogger(__name__)

FOLDER: Final = "_TRIDENT_FLEET"  # environment variable (no setting, hence the underscore); set for several workers
SHARED: Final = "trident-workers-"  # how the folder that worker processes share begins, below TMPDIR
JOURNAL: Final = "fleet"  # our part of it
_STARTED_WITH: Final = "started_with.json"
_READY: Final = ".ready"
_POLL_S: Final = 0.05
_RETRY_S: Final = 1.0


class Change(BaseModel):
    """One entry of the journal."""

    model_config = ConfigDict(frozen=True)

    action: Literal["load", "unload"]
    model: str
    version: int | None = None
    make_default: bool = True


class Fleet:
    """This worker's part in it."""

    def __init__(self, hosting: Hosting, settings: ServerSettings, folder: Path | None = None) -> None:
        self._hosting = hosting
        self._settings = settings
        self._folder = folder
        self._complete = folder is None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    def of_environment(cls, hosting: Hosting, settings: ServerSettings) -> "Fleet":
        """The fleet that `__main__` prepared, or a fleet of one."""
        folder = os.environ.get(FOLDER)
        return cls(hosting, settings, Path(folder) if folder else None)

    @property
    def complete(self) -> bool:
        """All workers have been ready at some time in this one's life. (One that dies later is replaced.)"""
        if not self._complete and self._folder is not None:
            self._complete = len(ready_workers(self._folder)) >= self._settings.workers
        return self._complete

    def dropped(self) -> dict[str, str]:
        """Of the bundles that the service was started with, those that were unloaded since, and the names of their models:
        a worker that is started later does without them, and they need not be there any more.
        """
        if self._folder is None:
            return {}
        there = self._replay(self._changes())
        return {
            reference: model
            for reference, (model, version) in self._started_with().items()
            if version not in there.get(model, (0, set()))[1]
        }

    async def join(self) -> None:
        """Catch up with the journal, before the first request is accepted; and follow it from now on."""
        if self._folder is None:
            return
        (self._folder / f"{os.getpid()}.worker").touch()
        changes = self._changes()
        there = self._replay(changes)
        for hosted in list(self._hosting.all()):
            model, version = hosted.bundle.manifest.model, hosted.bundle.manifest.version
            if version not in there.get(model, (0, set()))[1]:  # unloaded while this worker was loading it
                await self._outcome(Change(action="unload", model=model, version=version))
        for model, (default, versions) in there.items():
            for version in sorted(versions.difference(self._hosting.versions(model))):
                await self._outcome(Change(action="load", model=model, version=version, make_default=False))
            if self._hosting.default_version(model) != default:
                await self._outcome(Change(action="load", model=model, version=default))
        for number in range(1, len(changes) + 1):
            atomic_write(_ack(self._folder, number, os.getpid()), "{}")
        self._watcher = asyncio.create_task(self._follow(self._folder, len(changes) + 1))
        (self._folder / f"{os.getpid()}{_READY}").touch()

    async def leave(self) -> None:
        """Follow it no longer."""
        if self._watcher is not None and self._folder is not None:
            self._watcher.cancel()
            for suffix in (_READY, ".worker"):
                (self._folder / f"{os.getpid()}{suffix}").unlink(missing_ok=True)

    async def apply(self, change: Change) -> None:
        """Make a change in every worker, or, if one of them could not load the version, in none. (A version that is loaded
        already, and whose files have changed since, is replaced in one after the other.)

        Raises:
            UnknownModelError: there is no such model or version.
            RequestError: a worker could not load it; nothing was switched.
            UnavailableError: a worker did not answer in time.
        """
        if self._folder is None:
            _raise_again(await self._outcome(change))
            return
        if change.action == "unload":
            await self._everywhere(self._folder, change)
            return
        # "The highest" may be another one by the time that a later worker catches up.
        version = await self._hosting.find_version(change.model, change.version)
        beside = change.model_copy(update={"version": version, "make_default": False})
        was_there = version in self._hosting.versions(change.model)
        try:
            await self._everywhere(self._folder, beside)
        except RequestError:
            if not was_there:
                with contextlib.suppress(TridentError):  # where it could not be loaded, there is nothing to unload
                    await self._everywhere(self._folder, beside.model_copy(update={"action": "unload"}))
            raise
        if change.make_default:
            await self._everywhere(self._folder, beside.model_copy(update={"make_default": True}))

    async def _everywhere(self, folder: Path, change: Change) -> None:
        number = _append(folder, change)
        timeout_s = self._settings.start_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        while missing := [pid for pid in _workers(folder) if not _ack(folder, number, pid).exists()]:
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(
                    f"workers {missing} did not {change.action} {change.model} within {timeout_s:.0f} s"
                )
            await asyncio.sleep(_POLL_S)
        for outcome in _outcomes(folder, number):
            _raise_again(outcome)

    def _changes(self) -> list[Change]:
        assert self._folder is not None
        entries = itertools.takewhile(Path.exists, (_entry(self._folder, number) for number in itertools.count(1)))
        return [Change.model_validate_json(entry.read_text()) for entry in entries]

    def _started_with(self) -> dict[str, tuple[str, int]]:
        assert self._folder is not None
        found: dict[str, tuple[str, int]] = json.loads((self._folder / _STARTED_WITH).read_text())
        return found

    def _replay(self, changes: Sequence[Change]) -> dict[str, tuple[int, set[int]]]:
        """By model: the default version, and all that are loaded, after these changes; as `Hosting` does it."""
        assert self._folder is not None
        there: dict[str, tuple[int, set[int]]] = {}
        started_with = [
            Change(action="load", model=model, version=version) for model, version in self._started_with().values()
        ]
        for number, change in enumerate([*started_with, *changes], 1 - len(started_with)):
            default, versions = there.get(change.model, (0, set()))
            if change.action == "load" and change.version is not None:
                outcomes = _outcomes(self._folder, number) if number > 0 else []
                if outcomes and all(outcomes):  # nobody could load it
                    continue
                default = change.version if change.make_default or not versions else default
                there[change.model] = default, versions | {change.version}
            elif versions := versions - ({change.version} if change.version is not None else versions):
                there[change.model] = default if default in versions else max(versions), versions
            else:
                there.pop(change.model, None)
        return there

    async def _follow(self, folder: Path, first: int) -> None:
        number = first
        while True:
            try:
                while not _entry(folder, number).exists():  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(_POLL_S)
                await self._follow_entry(folder, number)
            except OSError:  # no file descriptor left, say: it may be well again in a moment
                log.exception("change %d of the journal", number)
                await asyncio.sleep(_RETRY_S)
            else:
                number += 1

    async def _follow_entry(self, folder: Path, number: int) -> None:
        change = Change.model_validate_json(_entry(folder, number).read_text())
        atomic_write(_ack(folder, number, os.getpid()), json.dumps(await self._outcome(change)))

    async def _outcome(self, change: Change) -> dict[str, str]:
        """Make the change here. Empty if that went well; it never raises, for a worker must go on following."""
        try:
            if change.action == "load":
                await self._hosting.load(change.model, change.version, make_default=change.make_default)
            else:
                await self._hosting.unload(change.model, change.version)
        except UnknownModelError as error:
            return {"kind": error.kind, "message": error.message}
        except Exception as error:
            log.exception("could not %s %s", change.action, change.model)
            return {"kind": RequestError.kind, "message": f"failed to {change.action} {change.model}: {error}"}
        return {}


def prepare(folder: Path, bundles: Mapping[str, Bundle]) -> None:
    """Make the journal, for workers that start with these bundles, by their references in the settings."""
    folder.mkdir()
    started_with = {reference: (one.manifest.model, one.manifest.version) for reference, one in bundles.items()}
    atomic_write(folder / _STARTED_WITH, json.dumps(started_with))


def ready_workers(folder: Path) -> list[int]:
    """The processes that serve."""
    return _living(folder, _READY)


def _outcomes(folder: Path, number: int) -> list[dict[str, str]]:
    return [json.loads(ack.read_text()) for ack in folder.glob(f"{number:06d}.*.ack")]


def _append(folder: Path, change: Change) -> int:
    """Write the next entry: complete, and never over another worker's."""
    draft = folder / f"{os.getpid()}.draft"
    draft.write_text(change.model_dump_json())
    for number in itertools.count(1):
        try:
            os.link(draft, _entry(folder, number))
        except FileExistsError:
            continue
        draft.unlink()
        return number
    raise AssertionError


def _entry(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.change"


def _ack(folder: Path, number: int, pid: int) -> Path:
    return folder / f"{number:06d}.{pid}.ack"


def _workers(folder: Path) -> list[int]:
    return _living(folder, ".worker")


def _living(folder: Path, suffix: str) -> list[int]:
    pids = [int(path.stem) for path in folder.glob(f"*{suffix}")]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def _raise_again(outcome: dict[str, str]) -> None:
    if outcome:
        error = UnknownModelError if outcome["kind"] == UnknownModelError.kind else RequestError
        raise error(outcome["message"])
