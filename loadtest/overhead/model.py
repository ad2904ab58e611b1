"""The model that every contestant serves: encoded images in, answers in JSON out, with the preprocessing and the JSON writer of
Trident's service and one onnxruntime thread. And the settings of a peer, which `contestants` passes in environment variables.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from bundle.postprocess import DEFAULT_TOP_K, AnswerWriter, Probabilities
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
        manifest = bundle.manifest
        self._input = manifest.input
        self._writer = AnswerWriter(manifest.model, manifest.version, manifest.labels)
        self._session = ort.InferenceSession(
            bundle.file(bundle.artefact("onnx")), options, providers=["CPUExecutionProvider"]
        )

    def decode(self, image: bytes) -> Pixels:
        """Decode an image: uint8 `[3, H, W]`."""
        return preprocess(image, self._input)

    def infer(self, pixels: Sequence[Pixels]) -> Probabilities:
        """Probabilities of a batch: float32 `[N, classes]`."""
        probabilities: Probabilities = self._session.run(["probabilities"], {"image": np.stack(pixels)})[0]
        return probabilities

    def answers(self, pixels: Sequence[Pixels]) -> list[bytes]:
        """The answers to a batch as JSON, in the format of Trident's servers and by their function."""
        return [self._writer.answer(row, DEFAULT_TOP_K) for row in self.infer(pixels)]
