"""The model that every contestant serves: encoded images in, answers out, with the shared preprocessing and one onnxruntime
thread. And the settings of a peer, which `contestants` passes in environment variables.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from bundle.postprocess import DEFAULT_TOP_K, Probabilities, answer
from bundle.preprocess import Pixels, preprocess
from bundle.store import read_bundle

BUNDLE: Final = "BUNDLE"
MAX_BATCH_SIZE_VARIABLE: Final = "OVERHEAD_MAX_BATCH_SIZE"
DELAY_MS_VARIABLE: Final = "OVERHEAD_DELAY_MS"
WORKERS_VARIABLE: Final = "OVERHEAD_WORKERS"

MAX_BATCH_SIZE: Final = int(os.environ.get(MAX_BATCH_SIZE_VARIABLE, "32"))
DELAY_MS: Final = float(os.environ.get(DELAY_MS_VARIABLE, "1"))
WORKERS: Final = int(os.environ.get(WORKERS_VARIABLE, "1"))


class Model:
    """The bundle in the folder `path`."""

    def __init__(self, path: Path) -> None:
        bundle = read_bundle(path, check=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._manifest = bundle.manifest
        self._session = ort.InferenceSession(
            bundle.file(bundle.artefact("onnx")), options, providers=["CPUExecutionProvider"]
        )

    def decode(self, image: bytes) -> Pixels:
        """Decode an image: uint8 `[3, H, W]`."""
        return preprocess(image, self._manifest.input)

    def infer(self, pixels: Sequence[Pixels]) -> Probabilities:
        """Probabilities of a batch: float32 `[N, classes]`."""
        probabilities: Probabilities = self._session.run(["probabilities"], {"image": np.stack(pixels)})[0]
        return probabilities

    def answers(self, pixels: Sequence[Pixels]) -> list[dict[str, Any]]:
        """The answers to a batch, in the format of Trident's servers."""
        manifest = self._manifest
        return [
            answer(row, manifest.model, manifest.version, manifest.labels, DEFAULT_TOP_K) for row in self.infer(pixels)
        ]
