"""What clients know about a server: its wire formats, its health endpoints and its metrics. One subclass per server.

The subclass of the server NAME is `DIALECT` in `serving.clients.NAME`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

from bundle.errors import DeploymentError
from serving.clients.endpoint import Endpoint, ServerName
from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import Wire

# By stage (decode, queue, inference, ...): seconds so far, and the number of images that they were spent on.
StageCounters = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class TensorModel:
    """A model that takes pixels by the Open Inference Protocol: its path, and the names of its tensors."""

    path: str
    input_name: str = "image"
    output_name: str = "probabilities"


class Dialect(ABC):
    """One server, as its clients see it."""

    health_paths: ClassVar[tuple[str, ...]] = ("/v2/health/live", "/v2/health/ready")
    # Whether `/v2/models/<model>/ready` reports the state of one model.
    reports_model_readiness: ClassVar[bool] = True
    # The Prometheus counter of answered requests.
    request_counter: ClassVar[str]

    @abstractmethod
    def http(self, model: str, version: int | None = None) -> Wire:
        """Predictions over HTTP; of the model's default version, or of `version`."""

    def grpc(self, model: str, version: int | None = None) -> GrpcWire:
        """Predictions over gRPC.

        Raises:
            DeploymentError: the server has no gRPC.
        """
        raise DeploymentError("this server does not speak gRPC; ask it over HTTP")

    def hint(self, endpoint: Endpoint) -> str | None:
        """What to try first, in Rich's markup; None: nothing that fits in a line."""
        return None

    def backend(self, settings: Mapping[str, object]) -> str:
        """What a report must say about how the server runs the model; empty: nothing.

        Args:
            settings: as for `tensor_model`.
        """
        return ""

    def tensor_model(self, model: str, version: int, settings: Mapping[str, object]) -> TensorModel | None:
        """Where pixels can be sent instead of an encoded image; None: nowhere.

        Args:
            settings: the server's settings as JSON values; empty if they are not known.
        """
        return None

    @abstractmethod
    def stage_counters(self, endpoint: Endpoint, model: str, version: int | None) -> StageCounters:
        """How long each stage took so far, as the server counts it.

        Raises:
            httpx.HTTPError, KeyError, ValueError: the server does not answer, or has no such counters.
        """


def dialect_of(server: ServerName) -> Dialect:
    """The dialect of a server."""
    found: Dialect = import_module(f"serving.clients.{server}").DIALECT
    return found
