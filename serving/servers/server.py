"""One interface over the servers: all that a supervisor, a container and the command line need of each.

A server NAME of `serving.clients.endpoint.ServerName` is the class `SERVER` of `serving.servers.NAME`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Final

from bundle.golden import Fault
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, ServerName
from serving.deployment import Deployment
from serving.settings import ServerSettings, ServingSettings

EffectiveSettings = dict[str, object]
REPAIR_AFTER_S: Final = 20.0  # time for a server to replace its own workers
# Settings that `trident status` compares with the requested ones, in display order.
READ_BACK: tuple[str, ...] = (
    *("runtime", "workers", "threads", "max_batch_size", "queue_delay_ms", "queue_size"),
    *("request_timeout_s", "max_body_bytes", "max_image_pixels"),
)


@dataclass(frozen=True)
class StartCommand:
    """A program that runs in the foreground and stops on SIGTERM."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class KillTarget:
    """A process that `trident drill` kills: the first descendant whose command line has `marker`; None: the server."""

    description: str
    marker: str | None = None


class Server(ABC):
    """One server on this machine. Methods are in the order of its life; each blocks until it is done.

    Making an object does nothing: `prepare` writes files, `start_command` is executed by the caller. Methods that talk to
    the running server raise DeploymentError (it refused) or OSError (it cannot be reached).

    Args:
        settings: as given, for all servers.
        folder: for the rendered configuration; it belongs to the server alone.
    """

    name: ClassVar[ServerName]
    kill_targets: ClassVar[tuple[KillTarget, ...]] = ()
    repair_description: ClassVar[str] = ""

    def __init__(self, settings: ServingSettings, deployment: Deployment, folder: Path) -> None:
        self.settings: ServerSettings = settings.of(self.name)
        self.deployment = deployment
        self.folder = folder.resolve()
        self.pid: int | None = None
        self.repair_after_s = REPAIR_AFTER_S

    @property
    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Its addresses."""

    @property
    def stop_timeout_s(self) -> float:
        """How long it may take to stop after SIGTERM, before it is killed."""
        return 15.0

    # --- start

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration for the deployment. Again whenever the deployment has changed.

        Raises:
            DeploymentError: something that the server needs is not installed; the message says what to do.
            BundleError: a bundle has no artefact for the settings.
        """

    @abstractmethod
    def start_command(self) -> StartCommand:
        """What to execute. Called before every start: it also removes what a killed process left behind."""

    def started(self, pid: int) -> None:
        """It was started as process `pid`."""
        self.pid = pid

    @abstractmethod
    def is_up(self) -> bool:
        """Whether its workers are up. The caller then sends a golden request."""

    # --- versions

    @abstractmethod
    def load(self, bundle: Bundle) -> None:
        """Load a version beside those that are served. It answers requests for exactly this version."""

    @abstractmethod
    def make_default(self, bundle: Bundle) -> None:
        """Let a loaded version answer requests that name no version."""

    @abstractmethod
    def unload(self, bundle: Bundle) -> None:
        """Wait until a version has answered what it has accepted, then drop it. New requests no longer name it."""

    # --- supervision

    def probe(self) -> Fault | None:
        """What is broken that a golden request may not show: one of several workers, for example. Cheap."""
        return None

    def repair(self) -> str | None:
        """Repair what `probe` found without a restart. Returns what was done; None: nothing, or not yet."""
        return None

    def predictions_served(self, bundle: Bundle) -> float | None:
        """A counter that grows with every prediction of the bundle's model; None if the server does not tell.

        Only for servers that let a request wait without an answer: a counter that grows tells an overloaded server from a
        dead one.
        """
        return None

    def overload_url(self, bundle: Bundle) -> str | None:
        """Where the server reports its queue and workers as TorchServe does; None: it refuses in time by itself."""
        return None

    def drain(self) -> None:
        """Wait until accepted requests are answered. SIGTERM comes next."""
        return

    # --- what it runs with

    @abstractmethod
    def effective_settings(self) -> EffectiveSettings:
        """Settings as the running server reports them, in our units and by our names; only those that it reports."""

    def expected_settings(self) -> EffectiveSettings:
        """What `effective_settings` should report: our settings, as far as the server can express them."""
        return {name: getattr(self.settings, name) for name in READ_BACK}

    def observations(self) -> Mapping[str, str]:
        """What the running server has decided by itself, by name; shown by `trident status`."""
        return {}

    def cleanup(self) -> None:
        """Remove what it keeps outside its folder. It has stopped for good."""
        return

    # --- for subclasses

    def child_environment(self) -> dict[str, str]:
        """This process's environment, plus the variable that saves children from verifying the same bundles again."""
        return {**os.environ, **self.deployment.environment()}


def server_class(name: ServerName) -> type[Server]:
    """The class of a server. Imported when asked for: each container image has the packages of its own server only."""
    found: type[Server] = import_module(f"serving.servers.{name}").SERVER
    return found
