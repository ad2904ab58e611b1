"""The client of TorchServe and Triton over gRPC, on grpcio."""

import re
import time
from typing import Final

import grpc

from bundle.errors import DeploymentError
from serving.clients.client import Client, TimedPrediction, UnreachableError
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint
from serving.clients.grpc_wire import GrpcWire, http_status
from serving.clients.http_wire import RefusedError

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    # Each client has a connection of its own: by default channels to one address share it, also when it is broken.
    ("grpc.use_local_subchannel_pool", 1),
)
_CONNECTION_FAILED: Final = re.compile(
    r"failed to connect|connection (refused|reset|timed out|attempt)|socket closed|broken pipe|goaway|stream removed|"
    r"recvmsg|endpoint (clos|read)|transport",
    re.IGNORECASE,
)


class GrpcClient(Client):
    """A channel to one model on one server."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        version: int | None = None,
        timeout_s: float = 30.0,
        api_key: str | None = None,
    ) -> None:
        """Raises: DeploymentError: the server has no gRPC, or its address is not known."""
        self.endpoint = endpoint
        self.wire: GrpcWire = dialect_of(endpoint.server).grpc(model, version)
        if endpoint.grpc is None:
            raise DeploymentError(f"the gRPC address of {endpoint.server} is not known")
        self._timeout_s = timeout_s
        self._api_key = api_key
        self._channel = grpc.insecure_channel(endpoint.grpc, options=_OPTIONS)
        self._call = self._channel.unary_unary(self.wire.method)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def ask(self, image: bytes, top_k: int | None = None) -> TimedPrediction:
        """The answer with its time; gRPC carries no Server-Timing."""
        request = self.wire.request(image, top_k, self._api_key)
        started = time.perf_counter()
        try:
            response = self._call(request, timeout=self._timeout_s, metadata=self.wire.metadata(self._api_key))
        except grpc.RpcError as error:
            raise self._error(error) from error
        seconds = time.perf_counter() - started
        return TimedPrediction(self.wire.prediction(response), seconds, {})

    def _error(self, error: grpc.RpcError) -> UnreachableError | RefusedError:
        code, details = error.code().name, (error.details() or "").partition("\n")[0][:500]
        # grpcio does not tell a server's own UNAVAILABLE from a connection that failed, except by its words.
        if code == "DEADLINE_EXCEEDED" or (code == "UNAVAILABLE" and _CONNECTION_FAILED.search(details)):
            return UnreachableError(f"{self.endpoint.server} at {self.endpoint.grpc}: {code}: {details}")
        return RefusedError(http_status(code, details), f"gRPC {code}: {details}")
