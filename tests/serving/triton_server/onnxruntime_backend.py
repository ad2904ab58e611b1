"""In place of Triton's native onnxruntime backend, which the wheel lacks: a python-based backend of the same name.

https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of a model with `platform: "onnxruntime_onnx"`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx`."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch."""
        pixels = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        (probabilities,) = self.session.run(["probabilities"], {"image": np.concatenate(pixels)})
        parts = np.split(probabilities, np.cumsum([len(part) for part in pixels])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", part)]) for part in parts]
