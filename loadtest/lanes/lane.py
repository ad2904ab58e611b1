"""One lane of the benchmark: a server's address, and how to send it images."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from bundle.manifest import Manifest
from bundle.store import Bundle
from loadtest.lanes.tensor_wire import TensorWire
from loadtest.lanes.wires import CallWire, ImageWire, JsonWire
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, Endpoint, Protocol
from serving.clients.http_wire import Wire

# The format of requests and responses. fastapi, torchserve, triton: one of our servers. image: the image as the body.
# json, json-batch: the image in base64 in a JSON object. tensor: pixels by the Open Inference Protocol. null: the null
# target, which answers without doing anything.
DialectName = Literal["fastapi", "torchserve", "triton", "image", "json", "json-batch", "tensor", "null"]
_THIRD_PARTY: tuple[DialectName, ...] = ("image", "json", "json-batch")


class Lane(BaseModel):
    """Server x runtime x precision x protocol x input.

    Args:
        name: its name in tables.
        url: base URL, without the dialect's own path.
        path: the whole path of an `image` or `json` lane; the model's path of a `tensor` lane.
        backend: how the server runs the model, where the name must say so.
        input_name: the input tensor of a `tensor` lane; the field of a `json` lane.
        grpc: `host:port` of a gRPC lane.
        tolerance: largest |difference| to the golden probabilities with which an answer is accepted.
        container_url: metrics of the server's container (CPU, memory, throttling); empty: it runs in no container.
        pids: the root processes of the server on this machine; empty: unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    server: str
    url: str
    dialect: DialectName
    model: str
    version: int | None = None
    path: str = ""
    input_name: str = "image"
    output_name: str = "probabilities"
    runtime: str = "unknown"
    backend: str = ""
    precision: str = "unknown"
    protocol: Protocol = "http"
    grpc: str | None = None
    tolerance: float
    metrics_url: str = ""
    container_url: str = ""
    pids: tuple[int, ...] = ()

    @classmethod
    def of(cls, endpoint: Endpoint, bundle: Bundle, **more: object) -> Self:
        """The lane of one of our servers that takes encoded images."""
        manifest = bundle.manifest
        content = {
            "name": endpoint.server,
            "server": endpoint.server,
            "url": endpoint.url,
            "dialect": endpoint.server,
            "model": manifest.model,
            "version": manifest.version,
            "metrics_url": endpoint.metrics_url,
            "container_url": endpoint.container_url,
            "grpc": endpoint.grpc,
        }
        return cls.model_validate(content | more)

    @property
    def input(self) -> str:
        """What is sent: `image` or `tensor`."""
        return "tensor" if self.dialect == "tensor" else "image"

    @property
    def third_party(self) -> bool:
        """Whether the server may name its model and its labels differently."""
        return self.dialect in _THIRD_PARTY

    @property
    def server_process(self) -> str:
        """A name that is the same for all lanes of one running server."""
        return f"{self.server}, pid {', '.join(map(str, self.pids))}" if self.pids else f"{self.server} at {self.url}"

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint for the clients of our three servers; None for other dialects."""
        if self.dialect not in SERVERS:
            return None
        content = {"server": self.dialect, "url": self.url, "metrics_url": self.metrics_url, "grpc": self.grpc}
        return Endpoint.model_validate(content)

    def wire(self, manifest: Manifest | None) -> Wire:
        """The format of its requests and responses.

        Args:
            manifest: of the bundle that it serves; None only for the null target.
        """
        if self.dialect == "null":
            return ImageWire("/predict")
        if self.dialect == "image":
            return ImageWire(self.path)
        if self.dialect == "json" or self.dialect == "json-batch":
            return JsonWire(self.path, self.input_name, batch=self.dialect == "json-batch")
        assert manifest is not None, "only the null target serves no bundle"
        if self.dialect == "tensor":
            return TensorWire(self.path, manifest, self.input_name, self.output_name)
        if self.protocol == "grpc":
            return CallWire(dialect_of(self.dialect).grpc(self.model, self.version))
        return dialect_of(self.dialect).http(self.model, self.version)
