"""BentoML, with adaptive batching: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

bentoml serve loadtest.overhead.bentoml_peer:Classifier --port PORT      (the bundle's folder in BUNDLE)
"""

import base64
import os
from pathlib import Path
from typing import Any

import bentoml

from loadtest.overhead.model import BUNDLE, MAX_BATCH_SIZE, Model


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Classifier:
    """The model."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ[BUNDLE]))

    @bentoml.api(route="/predict", batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=1000)  # type: ignore[untyped-decorator]
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """From images in base64 to answers."""
        return [
            self.model.answer(row) for row in self.model.infer([self.model.decode(base64.b64decode(p)) for p in images])
        ]
