"""gRPC clients against a small server with canned answers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from bundle.errors import DeploymentError
from bundle.schemas import problem
from serving.clients.client import UnreachableError
from serving.clients.connect import connect
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import Endpoint, ServerName
from serving.clients.grpc_wire import http_status
from serving.clients.http_wire import GarbledError, RefusedError
from serving.clients.torchserve_grpc import TorchserveGrpcWire
from serving.clients.torchserve_messages import PREDICTIONS, PredictionResponse, PredictionsRequest
from serving.clients.triton_grpc import TritonGrpcWire

PREDICTION = b'{"model":"m","version":2,"predictions":[{"label":"a","class_id":0,"probability":0.5}]}'
TRITON = ModelInferResponse(raw_output_contents=[len(PREDICTION).to_bytes(4, "little") + PREDICTION])
Respond = Callable[[bytes, grpc.ServicerContext], bytes]


@pytest.fixture
def serve() -> Iterator[Callable[[ServerName, Respond], Endpoint]]:
    """Start a gRPC server that answers every unary call with the given function."""
    servers: list[grpc.Server] = []

    def start(name: ServerName, respond: Respond) -> Endpoint:
        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:
                expected = PREDICTIONS if name == "torchserve" else "/inference.GRPCInferenceService/ModelInfer"
                return grpc.unary_unary_rpc_method_handler(respond) if details.method == expected else None

        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return Endpoint(server=name, url="http://127.0.0.1:1", grpc=f"127.0.0.1:{port}", metrics_url="")

    yield start
    for server in servers:
        server.stop(None).wait()


def test_triton_gets_the_image_top_k_version_and_key(serve: Callable[[ServerName, Respond], Endpoint]) -> None:
    seen: list[tuple[Any, dict[str, str]]] = []

    def respond(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((ModelInferRequest.FromString(request), dict(context.invocation_metadata())))
        return bytes(TRITON.SerializeToString())

    with connect(serve("triton", respond), "m", 2, protocol="grpc", api_key="secret") as client:
        reply = client.ask(b"image", 3)
    assert reply.prediction.top.label == "a"
    ((request, metadata),) = seen
    assert request.model_name == "m_v2"
    assert request.parameters["top_k"].int64_param == 3
    assert list(request.raw_input_contents) == [b"\x05\x00\x00\x00image"]
    assert metadata["triton-grpc-protocol-x-api-key"] == "secret"


def test_torchserve_gets_the_same(serve: Callable[[ServerName, Respond], Endpoint]) -> None:
    seen: list[Any] = []

    def respond(request: bytes, _: grpc.ServicerContext) -> bytes:
        seen.append(PredictionsRequest.FromString(request))
        return bytes(PredictionResponse(prediction=PREDICTION).SerializeToString())

    with connect(serve("torchserve", respond), "m", 2, protocol="grpc", api_key="secret") as client:
        assert client.predict(b"image", 3).version == 2
    assert (seen[0].model_name, seen[0].model_version) == ("m", "2")
    assert dict(seen[0].input) == {"data": b"image", "top_k": b"3", "api_key": b"secret"}


def test_torchserve_says_ok_to_errors_and_the_client_does_not() -> None:
    body = problem(422, "undecodable-image", "Image cannot be decoded", "cut off").model_dump_json().encode()
    with pytest.raises(RefusedError, match="cut off") as caught:
        TorchserveGrpcWire("m").prediction(PredictionResponse(prediction=body).SerializeToString())
    assert caught.value.code == 422


@pytest.mark.parametrize("wire", [TorchserveGrpcWire("m"), TritonGrpcWire("m")])
@pytest.mark.parametrize("response", [b"", b"\xff\xff", b"<html>"])
def test_other_answers_are_garbled(wire: TorchserveGrpcWire | TritonGrpcWire, response: bytes) -> None:
    with pytest.raises(GarbledError):
        wire.prediction(response)


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "not-an-image", 400),
        (grpc.StatusCode.UNAVAILABLE, "overloaded: 16 requests wait already", 503),
        (grpc.StatusCode.INTERNAL, "Model not found: m\norg.pytorch.serve.ModelNotFoundException", 404),
        (grpc.StatusCode.INTERNAL, "oh", 500),
    ],
)
def test_errors_of_the_server_are_refusals(
    serve: Callable[[ServerName, Respond], Endpoint], code: grpc.StatusCode, details: str, status: int
) -> None:
    def respond(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, details)
        raise AssertionError

    with (
        connect(serve("triton", respond), "m", protocol="grpc") as client,
        pytest.raises(RefusedError, match=details.partition("\n")[0]) as caught,
    ):
        client.predict(b"x")
    assert caught.value.code == status


def test_an_address_without_a_server() -> None:
    endpoint = Endpoint(server="triton", url="", grpc="127.0.0.1:9", metrics_url="")
    with connect(endpoint, "m", protocol="grpc") as client, pytest.raises(UnreachableError, match="triton at"):
        client.predict(b"x")


def test_fastapi_has_no_grpc() -> None:
    with pytest.raises(DeploymentError, match="HTTP"):
        dialect_of("fastapi").grpc("m")
    assert Endpoint(server="fastapi", url="", metrics_url="").protocols == ("http",)


def test_codes_without_an_http_twin_are_500() -> None:
    assert http_status("DATA_LOSS", "") == 500
