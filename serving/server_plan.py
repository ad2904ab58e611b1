"""What the three deployments have in common: how a server is started, where it answers, how it is known to be ready."""

import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

ServerName = Literal["fastapi", "torchserve", "triton"]
SERVERS: Final[tuple[ServerName, ...]] = ("fastapi", "torchserve", "triton")
Protocol = Literal["http", "grpc"]


class Endpoint(BaseModel):
    """Where a server answers. `grpc` is `host:port`."""

    model_config = ConfigDict(frozen=True)

    server: ServerName
    url: str
    grpc: str | None = None
    metrics_url: str

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """What it speaks."""
        return ("http",) if self.grpc is None else ("http", "grpc")


@dataclass(frozen=True)
class ServerPlan:
    """A server that is configured and can be started.

    `command` runs in the foreground as the leader of a process group, and stops on SIGTERM. `workers_ready` raises or
    returns False until the server's own workers are up; a prediction is checked afterwards by whoever starts it.
    `before_start` runs before every start, also after a crash; `cleanup` removes, at the end, what the server leaves
    outside its folder.
    """

    endpoint: Endpoint
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    workers_ready: Callable[[], bool]
    before_start: Callable[[], object] = field(default=lambda: None)
    cleanup: Callable[[], None] = field(default=lambda: None)
    stop_timeout_s: float = 15.0


def answers_200(url: str) -> bool:
    """Whether a GET of a health address is answered with 200.

    Raises:
        OSError: the server does not listen, or answers with an error (urllib's HTTPError is one).
    """
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - an address of our own
        return bool(response.status == 200)
