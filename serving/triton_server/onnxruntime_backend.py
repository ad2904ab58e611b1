"""A python-based Triton backend named `onnxruntime`, for the server of the wheel, which lacks the native backend.

`environment` copies this file to `backends/onnxruntime/model.py`. Triton looks for the native `libtriton_onnxruntime.so`
first, so on the public image the same repository runs on the native backend. https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from serving.triton_server.parameters import config_parameters


class TritonPythonModel:
    """One instance of a model with `platform: "onnxruntime_onnx"`."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Nothing to complete: config.pbtxt declares inputs and outputs."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session with the number of threads in config.pbtxt."""
        config = json.loads(args["model_config"])
        parameters = config_parameters(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "1"))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = (
            Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
        )
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch, and split the outputs."""
        columns = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.inputs
        ]
        sizes = [len(array) for array in columns[0]]
        feed = {
            name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for name, arrays in zip(self.inputs, columns, strict=True)
        }
        results = self.session.run(self.outputs, feed)
        responses, start = [], 0
        for size in sizes:
            tensors = [
                pb_utils.Tensor(name, result[start : start + size])
                for name, result in zip(self.outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += size
        return responses
