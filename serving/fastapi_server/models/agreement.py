"""Keep the models of all worker processes the same.

A request to load or unload reaches one worker. That worker changes the desired state; every worker reconciles its
models with it; the request is answered when all have done so. A version becomes the default only after every worker has
loaded it. If one worker cannot load it, every worker unloads it.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from bundle.errors import RequestError, TridentError, UnavailableError, UnknownModelError
from bundle.store import read_bundle
from serving.deployment import Deployment
from serving.fastapi_server.models.desired_state import (
    ActualState,
    DesiredBundle,
    DesiredState,
    StateFolder,
    ready_workers,
)
from serving.fastapi_server.models.hosting import Hosting
from serving.settings import ServerSettings

log = logging.getLogger(__name__)

STATE_VARIABLE: Final = "_TRIDENT_STATE"  # environment variable: the state's folder; not set for a single worker
_POLL_S: Final = 0.05
_RETRY_S: Final = 1.0


class Agreement:
    """One worker's part in it. A single worker (`folder` is None) keeps the desired state in memory."""

    def __init__(
        self, hosting: Hosting, settings: ServerSettings, folder: Path | None = None, pid: int | None = None
    ) -> None:
        self._hosting = hosting
        self._settings = settings
        self._folder = StateFolder(folder) if folder is not None else None
        self._pid = pid or os.getpid()
        self._desired = DesiredState()
        self._reached = -1
        self._changing = asyncio.Lock()
        self._all_were_ready = folder is None
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    def of_environment(cls, hosting: Hosting, settings: ServerSettings) -> "Agreement":
        """The agreement between the workers that `__main__` starts."""
        folder = os.environ.get(STATE_VARIABLE)
        return cls(hosting, settings, Path(folder) if folder else None)

    @property
    def complete(self) -> bool:
        """Whether all workers have been ready at the same time. (One that dies later is replaced.)"""
        if not self._all_were_ready and self._folder is not None:
            self._all_were_ready = len(ready_workers(self._folder.path)) >= self._settings.workers
        return self._all_were_ready

    async def join(self) -> None:
        """Load the desired bundles, before the first request is accepted. Then follow every change.

        Raises:
            BundleError, DeploymentError: a bundle cannot be served.
        """
        if self._folder is None:
            self._desired = DesiredState.of(await asyncio.to_thread(Deployment.of, self._settings))
        else:
            # Before the state is read: every later change waits for this worker.
            self._folder.write_actual(self._pid, ActualState())
            with self._folder.try_lock() as locked:
                self._read_desired(self._folder, drop_pending=locked)
        errors = await self._hosting.reconcile(self._desired)
        for bundle in self._desired.bundles:
            if bundle.name in errors:
                raise errors[bundle.name]
        self._report(self._desired, errors)
        if self._folder is not None:
            self._follower = asyncio.create_task(self._follow(self._folder))

    async def leave(self) -> None:
        """Stop following. Changes no longer wait for this worker."""
        if self._folder is not None and self._follower is not None:
            self._follower.cancel()
            self._folder.remove_actual(self._pid)

    async def load(self, model: str, version: int | None = None, *, make_default: bool = True) -> None:
        """Load a version (None: the highest) in every worker, or in none.

        Raises:
            UnknownModelError: there is no such bundle.
            RequestError: a worker could not load it.
            UnavailableError: a worker did not do it in time.
        """
        path = await asyncio.to_thread(self._hosting.bundle_path, model, version)
        async with self._change():
            try:
                bundle = await asyncio.to_thread(read_bundle, path, check=False)
                wanted = DesiredBundle.of(bundle)
                if wanted not in self._desired.bundles:
                    await asyncio.to_thread(bundle.verify)
            except TridentError as error:
                raise RequestError(f"failed to load {model}: {error.message}") from error
            if wanted not in self._desired.bundles:
                await self._load_everywhere(wanted)
            await self._publish(self._desired.accept(wanted, make_default=make_default))

    async def _load_everywhere(self, wanted: DesiredBundle) -> None:
        try:
            await self._publish(self._desired.next(pending=wanted))
        except Exception as error:
            with suppress(TridentError, OSError):
                # Do not wait again for a worker that was too slow a moment ago.
                await self._publish(self._desired.next(pending=None), wait=isinstance(error, RequestError))
            raise

    async def unload(self, model: str, version: int | None = None) -> None:
        """Unload a version (None: all) in every worker.

        Raises:
            UnknownModelError: it is not loaded.
            UnavailableError: a worker did not do it in time.
        """
        async with self._change():
            dropped = [one for one in self._desired.bundles if one.model == model and version in (None, one.version)]
            if not dropped:
                raise UnknownModelError(f"{model}{f':{version}' if version is not None else ''} is not loaded")
            await self._publish(self._desired.without(dropped))

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """Change `self._desired` in this block: one worker and one request at a time."""
        async with self._changing:
            if self._folder is None:
                yield
                return
            deadline = self._deadline()
            while True:
                with self._folder.try_lock() as locked:
                    if locked:
                        self._read_desired(self._folder, drop_pending=True)
                        yield
                        return
                if asyncio.get_running_loop().time() > deadline:
                    raise UnavailableError("another change of the models is in progress", retry_after_s=1)
                await asyncio.sleep(_POLL_S)

    def _read_desired(self, folder: StateFolder, *, drop_pending: bool) -> None:
        """With the lock (`drop_pending`), drop what is pending: the worker that was loading it has died."""
        self._desired = folder.read_desired()
        if drop_pending and self._desired.pending is not None:
            self._desired = self._desired.next(pending=None)
            folder.write_desired(self._desired)

    async def _publish(self, desired: DesiredState, *, wait: bool = True) -> None:
        """Change the desired state, and wait until every worker has reconciled.

        Raises:
            RequestError: a worker could not load what is pending.
            UnavailableError: a worker did not finish in time.
        """
        self._desired = desired
        if self._folder is not None:
            self._folder.write_desired(desired)
            errors = await self._errors_of_workers(self._folder, desired.revision) if wait else []
        else:
            errors = [_reasons(await self._hosting.reconcile(desired))]
        pending = desired.pending
        for reasons in errors:
            if pending is not None and pending.name in reasons:
                raise RequestError(f"failed to load {pending.model}: {reasons[pending.name]}")

    async def _errors_of_workers(self, folder: StateFolder, revision: int) -> list[dict[str, str]]:
        deadline = self._deadline()
        while True:
            workers = folder.workers()
            late = [pid for pid, state in workers.items() if state.revision < revision]
            if not late:
                return [state.errors for state in workers.values()]
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(f"workers {late} did not finish within {self._settings.start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    async def _follow(self, folder: StateFolder) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                desired = folder.read_desired()
                if desired.revision != self._reached:
                    self._report(desired, await self._hosting.reconcile(desired))
            except Exception:  # no file descriptor is left, for example; that may pass
                log.exception("cannot follow the desired state; next attempt in %g s", _RETRY_S)
                await asyncio.sleep(_RETRY_S)

    def _report(self, desired: DesiredState, errors: Mapping[str, Exception]) -> None:
        """Publish what this worker has reached."""
        if self._folder is not None:
            loaded = tuple(self._hosting.names())
            actual = ActualState(revision=desired.revision, ready=True, loaded=loaded, errors=_reasons(errors))
            self._folder.write_actual(self._pid, actual)
        self._reached = desired.revision

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.start_timeout_s


def _reasons(errors: Mapping[str, Exception]) -> dict[str, str]:
    return {name: str(error) for name, error in errors.items()}
