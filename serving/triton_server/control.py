"""Triton's model control and index, over gRPC. They can run code in the server, so they need the supervisor's token.

Over HTTP, a load would block one of Triton's few HTTP threads, and every connection of that thread, until it is done:
clients were seen to wait for 14 s.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from bundle.errors import DeploymentError

ADMIN_HEADER: Final = "x-trident-admin"
# They replace tritonclient's defaults.
_CHANNEL: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
)


class TritonControl:
    """One running Triton with explicit model control."""

    def __init__(self, address: str, timeout_s: float, token: str) -> None:
        self._address = address
        self._options = {"client_timeout": timeout_s, "headers": {f"triton-grpc-protocol-{ADMIN_HEADER}": token}}

    def load(self, name: str) -> None:
        """Load a model, or load it again if its files have changed. The old one answers until the new one is ready.

        Raises:
            DeploymentError: Triton cannot load it (what was loaded stays), or cannot be reached.
        """
        self._call(lambda client, options: client.load_model(name, **options))

    def unload(self, name: str) -> None:
        """Start to unload a model. It answers accepted requests first.

        Raises:
            DeploymentError: Triton cannot be reached.
        """
        self._call(lambda client, options: client.unload_model(name, **options))

    def states(self) -> dict[str, str]:
        """The state (READY, LOADING, UNLOADING, UNAVAILABLE) of every model that is or was loaded.

        Raises:
            DeploymentError: Triton cannot be reached.
        """
        index = self._call(lambda client, options: client.get_model_repository_index(**options))
        return {entry.name: entry.state for entry in index.models if entry.state}

    def _call(self, action: Callable[[Any, dict[str, Any]], Any]) -> Any:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        with closing(InferenceServerClient(self._address, channel_args=_CHANNEL)) as client:
            try:
                return action(client, self._options)
            except InferenceServerException as error:
                raise DeploymentError(f"Triton: {error.message()}") from error
