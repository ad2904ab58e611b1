"""mosec, with dynamic batching: https://mosecorg.github.io/mosec/.

    python -m loadtest.overhead.mosec_peer --port PORT      (the bundle's folder in BUNDLE: mosec parses the command line)

One stage: decoding in `deserialize`, the model in `forward`. On one core a second stage for decoding (as in mosec's ResNet
example) adds a hop between processes; it was slower.
"""

import json
import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker

from loadtest.overhead.model import BUNDLE, MAX_BATCH_SIZE, Model


class Classifier(Worker):  # type: ignore[misc]
    """The model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(Path(os.environ[BUNDLE]))

    def deserialize(self, data: bytes) -> Any:
        """From the body of a request to pixels."""
        return self.model.decode(data)

    def forward(self, data: Any) -> Any:
        """From a batch of pixels to answers."""
        return [self.model.answer(row) for row in self.model.infer(data)]

    def serialize(self, data: Any) -> bytes:
        """From an answer to the body of a response."""
        return json.dumps(data).encode()


def main() -> None:
    """Serve at /predict."""
    server = Server()
    server.append_worker(Classifier, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=1, route="/predict")
    server.run()


if __name__ == "__main__":
    main()
