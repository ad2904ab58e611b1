"""LitServe, with batching (https://lightning.ai/docs/litserve/features/batching) and its fast queue.

python -m loadtest.overhead.litserve_peer BUNDLE PORT

LitServe parses bodies as JSON or forms, unless the type of `request` tells FastAPI otherwise. Like its image examples, the worker
returns a complete `Response`, which is cheaper than a dictionary that the HTTP process serializes.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import Body, Response

from loadtest.overhead.model import DELAY_MS, MAX_BATCH_SIZE, Model


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The model."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.model = Model(Path(sys.argv[1]))

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        """From the body of a request to pixels."""
        return self.model.decode(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return the list; the model stacks it."""
        return inputs

    def predict(self, inputs: Any) -> Any:
        """From a batch of pixels to answers; without batching, from one image's pixels to its answer."""
        return self.model.answers(inputs) if MAX_BATCH_SIZE > 1 else self.model.answers([inputs])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the list."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """From an answer to the response."""
        return Response(output, media_type="application/json")


def main() -> None:
    """Serve at /predict."""
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=DELAY_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )


if __name__ == "__main__":
    main()
