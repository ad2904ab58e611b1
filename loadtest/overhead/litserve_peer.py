"""LitServe, with batching and its fast queue: https://lightning.ai/docs/litserve/features/batching.

python -m loadtest.overhead.litserve_peer BUNDLE PORT
"""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve

from loadtest.overhead.model import MAX_BATCH_SIZE, Model


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The model."""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.model = Model(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, str]) -> Any:
        """From JSON with the image in base64, as in LitServe's image examples, to pixels."""
        return self.model.decode(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return the list; the model stacks it."""
        return inputs

    def predict(self, inputs: list[Any]) -> list[Any]:
        """From a batch of pixels to answers."""
        return [self.model.answer(row) for row in self.model.infer(inputs)]

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the list."""
        return output

    def encode_response(self, output: Any) -> Any:
        """From an answer to the response."""
        return output


def main() -> None:
    """Serve at /predict."""
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )


if __name__ == "__main__":
    main()
