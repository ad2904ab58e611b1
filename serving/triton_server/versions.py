"""The versions in a running Triton, by its model repository API (explicit model control)."""

import shutil
import time
from pathlib import Path
from typing import Final

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.settings import ServerSettings
from serving.triton_server.admission import count_waiting
from serving.triton_server.control import TritonControl
from serving.triton_server.repository import (
    admission_file,
    build_repository,
    model_names,
    remove_models,
    write_default,
)

_POLL_S: Final = 0.05
_HANDED_OVER_S: Final = 0.3  # a request that came before the switch has passed the door by then


class TritonVersions:
    """`serving.servers.server.Versions`."""

    def __init__(self, control: TritonControl, repository: Path, settings: ServerSettings, shared_prefix: str) -> None:
        self._control = control
        self._repository = repository
        self._settings = settings
        self._shared_prefix = shared_prefix

    def load(self, bundle: Bundle) -> None:
        """Write its models into the repository, and load them, parts first."""
        prefix = self._shared_prefix
        build_repository(bundle, self._settings, self._repository, is_default=False, shared_prefix=prefix)
        for name in model_names(bundle):
            self._control.load(name)

    def make_default(self, bundle: Bundle) -> None:
        """Load the public ensemble with other steps; Triton answers by the old one until the new one is ready."""
        write_default(bundle, self._settings, self._repository, shared_prefix=self._shared_prefix)
        self._control.load(bundle.manifest.model)

    def unload(self, bundle: Bundle) -> None:
        """Wait until every place at its door is free, then unload its models. Whatever happens, they are removed from the
        repository, all of which a restart loads.
        """
        names = model_names(bundle)
        try:
            self._drain(bundle)
            for name in reversed(names):
                self._control.unload(name)
            deadline = time.monotonic() + self._settings.start_timeout_s
            while loaded := self._loaded(names):
                if time.monotonic() > deadline:
                    raise DeploymentError(f"Triton has not unloaded {', '.join(sorted(loaded))}")
                time.sleep(_POLL_S)
        finally:
            remove_models(names, self._repository)
            shutil.rmtree(self._repository / bundle.manifest.model / str(bundle.manifest.version), ignore_errors=True)
        admission_file(bundle, self._shared_prefix).unlink(missing_ok=True)

    def _drain(self, bundle: Bundle) -> None:
        table, timeout_s = admission_file(bundle, self._shared_prefix), self._settings.request_timeout_s
        time.sleep(_HANDED_OVER_S)
        deadline = time.monotonic() + 3 * timeout_s  # what was taken before is answered by then, or lost
        while waiting := count_waiting(table, timeout_s):
            if time.monotonic() > deadline:
                raise DeploymentError(f"{waiting} images still wait for {bundle.name} after {3 * timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def _loaded(self, names: tuple[str, ...]) -> set[str]:
        return {name for name, state in self._control.states().items() if name in names and state != "UNAVAILABLE"}
