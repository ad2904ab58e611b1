"""The state of the stack, as a file: only the supervisor writes it, atomically at every change."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from bundle.atomic_file import atomic_write
from serving.clients.endpoint import Endpoint, ServerName
from serving.deployment import Deployment
from serving.settings import ServingSettings

STACK: Final = Path("artifacts/stack")
ROLLOUT_REQUEST: Final = "rollout.request"  # a file in the stack's folder: the path of the bundle to roll out

# degraded: it runs, but a part of it is broken; `message` says which, and what was done about it.
Phase = Literal["preparing", "starting", "ready", "degraded", "restarting", "failed", "stopping", "stopped"]
RolloutPhase = Literal["loading", "verifying", "switching", "unloading", "done", "refused"]
UP: Final[tuple[Phase, ...]] = ("ready", "degraded")


class ServerState(BaseModel):
    """One server. `message`: why it is in this phase, where that is not obvious."""

    model_config = ConfigDict(extra="forbid")

    phase: Phase = "preparing"
    pid: int | None = None
    endpoint: Endpoint | None = None
    restarts: int = 0
    repairs: int = Field(default=0, validation_alias=AliasChoices("repairs", "mended"))  # mended: before 0.2.0
    ready_after_s: float | None = None
    message: str = ""


class RolloutState(BaseModel):
    """The last rollout, or the one in progress. `message`: why it was refused."""

    model_config = ConfigDict(extra="forbid")

    number: int
    bundle: Path
    phase: RolloutPhase = "loading"
    steps: dict[ServerName, str] = {}
    message: str = ""

    @property
    def finished(self) -> bool:
        """It is done or refused."""
        return self.phase in ("done", "refused")


class StackState(BaseModel):
    """The stack. It runs if process `pid` runs and was created at `process_created` (the pid alone may have been reused)."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    process_created: float
    started: datetime = Field(default_factory=lambda: datetime.now(UTC))
    settings: ServingSettings
    bundles: list[Path]
    previous: Path | None = Field(default=None, description="what the last rollout replaced")
    rollout: RolloutState | None = None
    servers: dict[ServerName, ServerState]

    @property
    def ready(self) -> bool:
        """Every server is ready."""
        return all(server.phase == "ready" for server in self.servers.values())

    def deployment(self) -> Deployment:
        """What is served. The supervisor has verified it."""
        return Deployment.read(self.bundles)

    def pids(self) -> dict[str, tuple[int, ...]]:
        """The leader of each server's processes."""
        return {name: (server.pid,) for name, server in self.servers.items() if server.pid is not None}

    def endpoints(self) -> list[Endpoint]:
        """The addresses of the servers that are up."""
        return [
            server.endpoint for server in self.servers.values() if server.phase in UP and server.endpoint is not None
        ]


def write_state(state: StackState, folder: Path) -> None:
    """Replace the state file."""
    atomic_write(folder / "state.json", state.model_dump_json(indent=2) + "\n")


def read_state(folder: Path = STACK) -> StackState | None:
    """The last state that was written, or None."""
    try:
        return StackState.model_validate_json((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None


def log_folder(folder: Path) -> Path:
    """Where the servers' output goes."""
    return folder / "logs"


def log_path(folder: Path, server: ServerName) -> Path:
    """Where a server's output goes."""
    return log_folder(folder) / f"{server}.log"
