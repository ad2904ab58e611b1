"""Where a server answers, and what it speaks."""

from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict

# The registry: NAME stands for `serving.clients.NAME` (its dialect) and `serving.servers.NAME` (its `Server` class).
ServerName = Literal["fastapi", "torchserve", "triton"]
SERVERS: Final[tuple[ServerName, ...]] = get_args(ServerName)
Protocol = Literal["http", "grpc"]


class Endpoint(BaseModel):
    """The addresses of one server.

    Args:
        url: base URL of the HTTP API.
        grpc: `host:port`; None if the server has no gRPC.
        metrics_url: Prometheus metrics.
        container_url: metrics of the container that the server runs in; empty if it runs in none.
    """

    model_config = ConfigDict(frozen=True)

    server: ServerName
    url: str
    grpc: str | None = None
    metrics_url: str
    container_url: str = ""

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that the server speaks."""
        return ("http",) if self.grpc is None else ("http", "grpc")
