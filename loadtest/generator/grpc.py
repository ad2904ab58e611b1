"""One gRPC channel for unary calls of serialised messages. grpcio's gevent mode runs other requests while one waits."""

import time

import grpc
from grpc.experimental import gevent as grpc_gevent

from loadtest.errors import TransportError
from loadtest.generator.http import Response
from serving.clients.grpc_wire import http_status
from serving.clients.http_wire import HttpRequest

# As in serving.clients.grpc_client: channels do not share a connection.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class GrpcConnection:
    """A channel to `host:port`. A call is an HTTP/2 POST of a serialised message to the method's path."""

    def __init__(self, address: str, timeout_s: float) -> None:
        grpc_gevent.init_gevent()  # idempotent
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._timeout_s = timeout_s
        self._calls: dict[str, grpc.UnaryUnaryMultiCallable] = {}

    def send(self, request: HttpRequest) -> Response:
        """Call, and read the response. A gRPC error becomes a response with the corresponding HTTP status.

        Raises:
            TransportError: no response, or not in time.
        """
        call = self._calls.get(request.path)
        if call is None:
            call = self._calls[request.path] = self._channel.unary_unary(request.path)
        sent_ns = time.perf_counter_ns()
        try:
            body = call(request.body, timeout=self._timeout_s, metadata=tuple(request.headers.items()))
        except grpc.RpcError as error:
            code, details = error.code().name, (error.details() or "").partition("\n")[0][:200]
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise TransportError(f"gRPC {code}: {details}", sent_ns) from error
            done_ns = time.perf_counter_ns()
            return Response(http_status(code, details), [], f"{code}: {details}".encode(), sent_ns, done_ns, done_ns)
        done_ns = time.perf_counter_ns()
        return Response(200, [], body, sent_ns, done_ns, done_ns)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
