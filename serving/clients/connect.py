"""A client, by the name of its protocol."""

from serving.clients.client import Client
from serving.clients.endpoint import Endpoint, Protocol
from serving.clients.http_client import HttpClient


def connect(
    endpoint: Endpoint,
    model: str,
    version: int | None = None,
    *,
    protocol: Protocol = "http",
    timeout_s: float = 30.0,
    api_key: str | None = None,
) -> Client:
    """A client of one model on one server; of its default version, or of `version`.

    Raises:
        DeploymentError: the server does not speak this protocol.
    """
    if protocol == "http":
        return HttpClient(endpoint, model, version, timeout_s, api_key)
    from serving.clients.grpc_client import GrpcClient  # grpcio and tritonclient take a third of a second

    return GrpcClient(endpoint, model, version, timeout_s, api_key)
