"""Pixels on the wire instead of images: the Open Inference Protocol v2 with the binary tensor extension.

The client of a tensor lane decodes and resizes before the measurement. The lane shows the cost of the server without
decoding. https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bundle.manifest import Manifest
from bundle.postprocess import DEFAULT_TOP_K, answer
from bundle.preprocess import preprocess
from bundle.schemas import Prediction
from serving.clients.http_wire import GarbledError, HttpRequest, RefusedError

_HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class TensorWire:
    """`POST <path>/infer`: uint8 `[1, 3, H, W]` in, float32 `[1, classes]` out, both binary."""

    path: str
    manifest: Manifest
    input_name: str = "image"
    output_name: str = "probabilities"

    def request(self, image: bytes, top_k: int | None = None) -> HttpRequest:
        """Decode the image; request the probabilities of its pixels."""
        pixels = preprocess(image, self.manifest.input)
        data = pixels.tobytes()
        tensor = {
            "name": self.input_name,
            "datatype": "UINT8",
            "shape": [1, *pixels.shape],
            "parameters": {"binary_data_size": len(data)},
        }
        output = {"name": self.output_name, "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
        headers = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        return HttpRequest(f"{self.path}/infer", headers, head + data)

    def prediction(self, status: int, headers: Mapping[str, str], body: bytes) -> Prediction:
        """Turn the probabilities into an answer.

        Raises:
            RefusedError, GarbledError.
        """
        if status != 200:
            raise RefusedError(status, f"HTTP {status}: {body[:200].decode(errors='replace')}")
        try:
            start = int(headers[_HEADER_LENGTH])
            probabilities = np.frombuffer(body[start:], "<f4")
        except (KeyError, ValueError) as error:
            raise GarbledError(f"no binary tensor in the response: {body[:200]!r}") from error
        labels = self.manifest.labels
        if len(probabilities) != len(labels):
            raise GarbledError(f"{len(probabilities)} probabilities instead of {len(labels)}")
        manifest = self.manifest
        return Prediction.model_validate(answer(probabilities, manifest.model, manifest.version, labels, DEFAULT_TOP_K))
