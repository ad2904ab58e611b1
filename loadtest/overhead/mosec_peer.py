"""mosec, with dynamic batching: https://mosecorg.github.io/mosec/.

    python -m loadtest.overhead.mosec_peer --port PORT      (the bundle's folder in BUNDLE: mosec parses the command line)

Its README, "Performance tuning", says: find the best `max_batch_size` and `max_wait_time`, limit the threads of the libraries,
choose a serialization other than JSON for images. So the body is the image. There is one stage: decoding in `deserialize`,
the model in `forward`. On one core a second stage for decoding (as in its ResNet example) adds a hop between processes and
was slower.
"""

import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker

from loadtest.overhead.model import BUNDLE, DELAY_MS, MAX_BATCH_SIZE, WORKERS, Model


class Classifier(Worker):  # type: ignore[misc]
    """The model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(Path(os.environ[BUNDLE]))

    def deserialize(self, data: bytes) -> Any:
        """From the body of a request to pixels."""
        return self.model.decode(data)

    def forward(self, data: Any) -> Any:
        """From a batch of pixels to answers; without dynamic batching, from one image's pixels to its answer."""
        return self.model.answers(data) if MAX_BATCH_SIZE > 1 else self.model.answers([data])[0]

    def serialize(self, data: Any) -> bytes:
        """Return the answer, which is JSON already."""
        answer: bytes = data
        return answer


def main() -> None:
    """Serve at /predict."""
    server = Server()
    server.append_worker(
        Classifier, num=WORKERS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=int(DELAY_MS), route="/predict"
    )
    server.run()


if __name__ == "__main__":
    main()
