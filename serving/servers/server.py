"""What the three deployments have in common: how a server is started, where it answers, how it is known to be ready."""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bundle.store import Bundle
from serving.clients.endpoint import Endpoint


class Versions(typing.Protocol):
    """The versions of the models in a running server. Every method blocks until the server has done it.

    Raises, all of them: DeploymentError (the server refused), OSError (it cannot be reached).
    """

    def load(self, bundle: Bundle) -> None:
        """Load it beside what is there; it answers when it is asked for by its version."""

    def make_default(self, bundle: Bundle) -> None:
        """Let it answer when no version is asked for."""

    def unload(self, bundle: Bundle) -> None:
        """Wait until it has answered what it took, then drop it. Nobody may ask for it any more."""


class Care(typing.Protocol):
    """What a running server needs from its supervisor, because it does not do it itself. `bundles` is what it serves.

    Every method blocks, and may raise DeploymentError (the server refused) or OSError (it cannot be reached).
    """

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """What is broken in it that a prediction may not show (a dead worker of several), or ''. Cheap."""

    def mend(self, bundles: Sequence[Bundle]) -> str:
        """Repair what `fault` found, without stopping the server. What was done, or '' if nothing can be (yet)."""

    def answered(self, bundle: Bundle) -> float:
        """A number that grows with every prediction of a bundle, for whomever; NaN if the server cannot be asked. Always
        the same for a server that says in time that it is too busy. Cheap; raises nothing.
        """

    def drain(self, bundles: Sequence[Bundle]) -> None:
        """Wait until it has answered what it took; it is stopped next."""


class NoCare:
    """For a server that looks after itself."""

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """Nothing."""
        return ""

    def mend(self, bundles: Sequence[Bundle]) -> str:
        """Nothing."""
        return ""

    def answered(self, bundle: Bundle) -> float:
        """It says in time that it is too busy."""
        return 0.0

    def drain(self, bundles: Sequence[Bundle]) -> None:
        """It drains when it is stopped."""


@dataclass(frozen=True)
class ServerPlan:
    """A server that is configured and can be started.

    `command` runs in the foreground as the leader of a process group, and stops on SIGTERM. `workers_ready` raises or
    returns False until the server's own workers are up; a prediction is checked afterwards by whoever starts it.
    `before_start` runs before every start, also after a crash; `cleanup` removes, at the end, what the server leaves
    outside its folder. `care` is made for every start, with the server's pid.
    """

    endpoint: Endpoint
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    workers_ready: Callable[[], bool]
    versions: Versions
    before_start: Callable[[], object] = field(default=lambda: None)
    cleanup: Callable[[], None] = field(default=lambda: None)
    care: Callable[[int], Care] = field(default=lambda _pid: NoCare())
    stop_timeout_s: float = 15.0
