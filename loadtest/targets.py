"""Who is measured with what: a server, a model, and images whose right answers are known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from bundle.errors import TridentError
from bundle.manifest import DEFAULT_TOLERANCE, Manifest
from bundle.schemas import Prediction
from bundle.store import Bundle
from loadtest.tensor_wire import TensorWire
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, Endpoint, Protocol
from serving.clients.grpc_wire import GrpcWire
from serving.clients.http_wire import HttpRequest, RefusedError, Wire, image_headers, parse_prediction

# What a target's requests look like: one of our three servers, a plain image to an address, pixels by the Open
# Inference Protocol, or a null target, which answers without doing anything.
Dialect = Literal["fastapi", "torchserve", "triton", "image", "tensor", "null"]
NULL_ANSWER: Final = b'{"model":"null","version":1,"predictions":[{"label":"0","class_id":0,"probability":1.0}]}'
NULL_IMAGE: Final = bytes(512)


class Target(BaseModel):
    """One lane: server x runtime x precision x protocol x what is sent.

    Args:
        lane: its name in tables.
        url: what comes before the dialect's own path.
        path: of `image` (the whole path) and `tensor` (the model's path) targets.
        grpc: `host:port`, of a lane whose protocol is gRPC.
        tolerance: largest |difference| to the golden probability with which an answer counts as right.
        container_url: the metrics of the server's container (CPU, memory, throttling); empty: it is not in one.
        pids: the server's processes on this machine (leaders; descendants are found); empty: unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lane: str
    server: str
    url: str
    dialect: Dialect
    model: str
    version: int | None = None
    path: str = ""
    input_name: str = "image"
    output_name: str = "probabilities"
    runtime: str = "unknown"
    precision: str = "unknown"
    protocol: Protocol = "http"
    grpc: str | None = None
    tolerance: float = DEFAULT_TOLERANCE
    metrics_url: str = ""
    container_url: str = ""
    pids: tuple[int, ...] = ()

    @classmethod
    def of(cls, endpoint: Endpoint, bundle: Bundle, **more: object) -> Self:
        """The image-in lane of one of our servers."""
        manifest = bundle.manifest
        content = {
            "lane": endpoint.server,
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
    def server_process(self) -> str:
        """The same for all lanes that one running server serves."""
        return f"{self.server}, pid {', '.join(map(str, self.pids))}" if self.pids else f"{self.server} at {self.url}"

    @property
    def endpoint(self) -> Endpoint | None:
        """As the clients of our three servers need it; None for others."""
        if self.dialect not in SERVERS:
            return None
        content = {"server": self.dialect, "url": self.url, "metrics_url": self.metrics_url, "grpc": self.grpc}
        return Endpoint.model_validate(content)

    def wire(self, manifest: Manifest | None) -> Wire:
        """How to ask it. `manifest`: of the bundle that it serves; only a null target has none."""
        if self.dialect == "null":
            return ImageWire("/predict")
        if self.dialect == "image":
            return ImageWire(self.path)
        assert manifest is not None, "only a null target serves no bundle"
        if self.dialect == "tensor":
            return TensorWire(self.path, manifest, self.input_name, self.output_name)
        if self.protocol == "grpc":
            return CallWire(dialect_of(self.dialect).grpc(self.model, self.version))
        return dialect_of(self.dialect).http(self.model, self.version)


@dataclass(frozen=True)
class CallWire:
    """A gRPC call as what it is on the wire: a POST of a serialised message to the method's path."""

    call: GrpcWire

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The call's bytes."""
        return HttpRequest(self.call.method, dict(self.call.metadata(None)), self.call.request(image, top_k))

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The prediction in the serialised response."""
        if status != 200:
            raise RefusedError(status, f"gRPC, as HTTP {status}: {body[:200].decode(errors='replace')}")
        return self.call.prediction(body)


@dataclass(frozen=True)
class ImageWire:
    """An image as the body of a POST to `path`; the answer is a `Prediction` in JSON."""

    path: str

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """The image, and nothing else."""
        return HttpRequest(self.path, image_headers(top_k), image)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """The body is the prediction."""
        return parse_prediction(status, body, body)


@dataclass(frozen=True)
class Question:
    """An image as a ready request, with its golden answer."""

    request: HttpRequest
    label: str
    class_id: int
    probability: float

    @classmethod
    def all_of(cls, bundle: Bundle, wire: Wire) -> list[Self]:
        """The golden images of a bundle, as questions to one server."""
        questions = []
        for (_, data), row in zip(bundle.golden_inputs(), bundle.golden_probabilities(), strict=True):
            top = int(np.argmax(row))
            questions.append(cls(wire.request(data), bundle.manifest.labels[top], top, float(row[top])))
        return questions

    @classmethod
    def null(cls) -> Self:
        """What a null target is asked."""
        return cls(ImageWire("/predict").request(NULL_IMAGE), "0", 0, 1.0)


class AnswerCheck:
    """Compares every answer with the golden one. Servers repeat themselves, so most are recognised by their bytes."""

    def __init__(self, wire: Wire, tolerance: float = DEFAULT_TOLERANCE) -> None:
        self._wire = wire
        self._tolerance = tolerance
        self._known: set[tuple[int, bytes]] = set()

    def fault(self, question: Question, status: int, headers: Callable[[], Mapping[str, str]], body: bytes) -> str:
        """'' if the response is a right answer, else what is wrong. `headers` are lower case, read if needed."""
        known = (id(question), body)
        if status == 200 and known in self._known:
            return ""
        try:
            top = self._wire.prediction(status, headers(), body).top
        except (TridentError, IndexError) as error:
            return error.message if isinstance(error, TridentError) else "wrong answer: no class at all"
        if top.class_id != question.class_id or not abs(top.probability - question.probability) <= self._tolerance:
            return (
                f"wrong answer: {top.label} {top.probability:.4f}, golden {question.label} {question.probability:.4f}"
            )
        if len(self._known) < 10_000:
            self._known.add(known)
        return ""
