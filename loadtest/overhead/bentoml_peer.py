"""BentoML, with adaptive batching: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

    bentoml serve loadtest.overhead.bentoml_peer:Classifier --port PORT      (the bundle's folder in BUNDLE)

Its dispatcher learns from recent requests how long to wait; `max_latency_ms` only refuses requests that would take longer.
Its own types for batches are lists in JSON and multipart forms. The two specifications below pass the body and the answer as
they are; batching works as with its own types.
"""

import os
from pathlib import Path
from typing import Any, Self

import bentoml
from starlette.requests import Request
from starlette.responses import Response

from loadtest.overhead.model import BUNDLE, MAX_BATCH_SIZE, Model


class Body(bentoml.IODescriptor):  # type: ignore[misc]
    """A request: the body as a batch of one image."""

    images: list[bytes]

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Self:
        """Read the body."""
        body: Self = cls.model_construct(images=[await request.body()])
        return body


class Answer(bentoml.IODescriptor):  # type: ignore[misc]
    """A response: the one answer."""

    answers: list[bytes]

    @classmethod
    async def to_http_response(cls, obj: list[bytes], serde: Any) -> Response:
        """Pass the answer, which is JSON already."""
        return Response(obj[0], media_type="application/json")


_BATCHING = {"batchable": True, "max_batch_size": MAX_BATCH_SIZE, "max_latency_ms": 1000} if MAX_BATCH_SIZE > 1 else {}


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Classifier:
    """The model."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ[BUNDLE]))

    @bentoml.api(route="/predict", input_spec=Body, output_spec=Answer, **_BATCHING)  # type: ignore[untyped-decorator]
    def predict(self, images: list[bytes]) -> list[bytes]:
        """From images to answers."""
        return self.model.answers([self.model.decode(image) for image in images])
