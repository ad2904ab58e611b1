"""What every contestant runs: encoded images in, answers out, by the shared preprocessing and one onnxruntime
thread.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from bundle.postprocess import DEFAULT_TOP_K, Probabilities, answer
from bundle.preprocess import Pixels, preprocess
from bundle.store import read_bundle

MAX_BATCH_SIZE: Final = 32


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
        """uint8 `[3, H, W]`."""
        return preprocess(image, self._manifest.input)

    def infer(self, pixels: Sequence[Pixels]) -> Probabilities:
        """float32 `[N, classes]`."""
        probabilities: Probabilities = self._session.run(["probabilities"], {"image": np.stack(pixels)})[0]
        return probabilities

    def answer(self, row: Probabilities) -> dict[str, Any]:
        """As Trident's servers give it."""
        return answer(row, self._manifest.model, self._manifest.version, self._manifest.labels, DEFAULT_TOP_K)
