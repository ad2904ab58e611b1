"""Keeps the models of all worker processes the same.

A request to load or unload reaches one worker. That one writes it into a journal; every worker (also one that is
started later) applies the journal in order and acknowledges each entry. The request is answered when all of them have.
"""

import asyncio
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from serving.errors import RequestError, UnavailableError, UnknownModelError
from serving.fastapi_server.hosting import Hosting

log = logging.getLogger(__name__)

FOLDER: Final = "_TRIDENT_FLEET"  # environment variable (no setting, hence the underscore); set for several workers
_POLL_S: Final = 0.05
_TIMEOUT_S: Final = 120.0


class Change(BaseModel):
    """One entry of the journal."""

    model_config = ConfigDict(frozen=True)

    action: Literal["load", "unload"]
    model: str
    version: int | None = None
    make_default: bool = True


class Fleet:
    """This worker's part in it."""

    def __init__(self, hosting: Hosting, folder: Path | None = None) -> None:
        self._hosting = hosting
        self._folder = folder
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    def of_environment(cls, hosting: Hosting) -> "Fleet":
        """The fleet that `__main__` prepared, or a fleet of one."""
        folder = os.environ.get(FOLDER)
        return cls(hosting, Path(folder) if folder else None)

    async def join(self) -> None:
        """Catch up with the journal, before the first request is accepted; and follow it from now on."""
        if self._folder is not None:
            (self._folder / f"{os.getpid()}.worker").touch()
            number = 1
            while _entry(self._folder, number).exists():
                await self._follow_entry(self._folder, number)
                number += 1
            self._watcher = asyncio.create_task(self._follow(self._folder, number))

    async def leave(self) -> None:
        """Follow it no longer."""
        if self._watcher is not None and self._folder is not None:
            self._watcher.cancel()
            (self._folder / f"{os.getpid()}.worker").unlink(missing_ok=True)

    async def apply(self, change: Change) -> None:
        """Make a change in every worker.

        Raises:
            UnknownModelError: there is no such model or version.
            RequestError: a worker could not load it; nothing was switched there.
            UnavailableError: a worker did not answer in time.
        """
        if self._folder is None:
            _raise_again(await self._outcome(change))
            return
        if change.action == "load":  # "the highest" may be another one by the time that a later worker catches up
            version = await self._hosting.find_version(change.model, change.version)
            change = change.model_copy(update={"version": version})
        number = _append(self._folder, change)
        deadline = asyncio.get_running_loop().time() + _TIMEOUT_S
        while missing := [pid for pid in _workers(self._folder) if not _ack(self._folder, number, pid).exists()]:
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(
                    f"workers {missing} did not {change.action} {change.model} within {_TIMEOUT_S:.0f} s"
                )
            await asyncio.sleep(_POLL_S)
        for ack in self._folder.glob(f"{number:06d}.*.ack"):
            _raise_again(json.loads(ack.read_text()))

    async def _follow(self, folder: Path, first: int) -> None:
        for number in itertools.count(first):
            while not _entry(folder, number).exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(_POLL_S)
            await self._follow_entry(folder, number)

    async def _follow_entry(self, folder: Path, number: int) -> None:
        change = Change.model_validate_json(_entry(folder, number).read_text())
        _write(_ack(folder, number, os.getpid()), json.dumps(await self._outcome(change)))

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
    pids = [int(path.stem) for path in folder.glob("*.worker")]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def _raise_again(outcome: dict[str, str]) -> None:
    if outcome:
        error = UnknownModelError if outcome["kind"] == UnknownModelError.kind else RequestError
        raise error(outcome["message"])


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
