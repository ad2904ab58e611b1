"""Which bundles the worker processes should serve, and what each of them has done about it: files in a shared folder.

desired.json        what every worker should serve; its revision grows with every change
actual.<pid>.json   the revision that a worker has reached, what it has loaded, and what it could not load
lock                locked by the worker that makes a change; the kernel unlocks it if that process dies
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil
from pydantic import BaseModel, ConfigDict

from bundle.atomic_file import atomic_write
from bundle.store import Bundle
from serving.deployment import Deployment

SHARED_PREFIX: Final = "trident-workers-"  # the folder in TMPDIR that the workers of a service share
STATE_FOLDER: Final = "state"  # the state's folder in it


class DesiredBundle(BaseModel):
    """A bundle whose files have been verified; `digest` is that of its manifest."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    path: Path
    digest: str

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """A bundle that was just verified."""
        manifest = bundle.manifest
        return cls(model=manifest.model, version=manifest.version, path=bundle.path, digest=bundle.digest)

    @property
    def name(self) -> str:
        """`model:version`."""
        return f"{self.model}:{self.version}"


class DesiredState(BaseModel):
    """What every worker should serve.

    `bundles` are loaded in every worker. `pending` is being loaded, and joins them once every worker has loaded it.
    """

    model_config = ConfigDict(frozen=True)

    revision: int = 0
    default_model: str | None = None
    default_versions: dict[str, int] = {}
    bundles: tuple[DesiredBundle, ...] = ()
    pending: DesiredBundle | None = None

    @classmethod
    def of(cls, deployment: Deployment) -> Self:
        """The state when the service starts."""
        return cls(
            default_model=deployment.default_model,
            default_versions={bundle.manifest.model: bundle.manifest.version for bundle in deployment},
            bundles=tuple(DesiredBundle.of(bundle) for bundle in deployment),
        )

    def next(self, **changes: Any) -> Self:
        """The next revision, with these changes."""
        return self.model_copy(update={"revision": self.revision + 1, **changes})

    def accept(self, loaded: DesiredBundle, *, make_default: bool) -> Self:
        """Every worker has loaded the bundle. The first version of a model is always its default."""
        defaults = self.default_versions
        if make_default or loaded.model not in defaults:
            defaults = defaults | {loaded.model: loaded.version}
        others = (one for one in self.bundles if one.name != loaded.name)
        return self.next(bundles=(*others, loaded), default_versions=defaults, pending=None)

    def without(self, dropped: Iterable[DesiredBundle]) -> Self:
        """Unload bundles. If a default is among them, the model's highest remaining version replaces it."""
        kept = tuple(one for one in self.bundles if one not in set(dropped))
        highest = {one.model: one.version for one in sorted(kept, key=lambda one: one.version)}
        there = {(one.model, one.version) for one in kept}
        defaults = {
            model: self.default_versions[model] if (model, self.default_versions[model]) in there else version
            for model, version in highest.items()
        }
        return self.next(bundles=kept, default_versions=defaults)


class ActualState(BaseModel):
    """What one worker has reached. `errors`: the bundles that it could not load, by name, and why."""

    model_config = ConfigDict(frozen=True)

    revision: int = -1
    ready: bool = False
    loaded: tuple[str, ...] = ()
    errors: dict[str, str] = {}


class StateFolder:
    """The shared folder. Every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_desired(self) -> DesiredState:
        """What every worker should serve."""
        return DesiredState.model_validate_json((self.path / "desired.json").read_text())

    def write_desired(self, state: DesiredState) -> None:
        """Publish a change. Only the worker that holds the lock may do that."""
        atomic_write(self.path / "desired.json", state.model_dump_json())

    def write_actual(self, pid: int, state: ActualState) -> None:
        """Publish what a worker has reached."""
        atomic_write(self.path / f"actual.{pid}.json", state.model_dump_json())

    def remove_actual(self, pid: int) -> None:
        """Changes no longer wait for this worker."""
        (self.path / f"actual.{pid}.json").unlink(missing_ok=True)

    def workers(self) -> dict[int, ActualState]:
        """What each living worker has reached, by process id."""
        found = {}
        for path in self.path.glob("actual.*.json"):
            pid = int(path.name.split(".")[1])
            with suppress(FileNotFoundError):  # it has just left
                if psutil.pid_exists(pid):
                    found[pid] = ActualState.model_validate_json(path.read_text())
        return found

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """Hold the lock for the block, if it is free; yields whether it is held."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                locked = False
            yield locked
        finally:
            os.close(descriptor)


def ready_workers(folder: Path) -> list[int]:
    """The process ids of the workers that accept requests."""
    return [pid for pid, state in StateFolder(folder).workers().items() if state.ready]
