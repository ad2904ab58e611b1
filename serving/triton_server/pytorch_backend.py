"""A python-based Triton backend named `pytorch`, for the server of the wheel, which lacks the native backend (libtorch).

It is installed like `onnxruntime_backend`. https://github.com/triton-inference-server/pytorch_backend
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from serving.triton_server.parameters import config_parameters


class TritonPythonModel:
    """One instance of a model with `platform: "pytorch_libtorch"`: one input, one output."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Nothing to complete: config.pbtxt declares inputs and outputs."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the module with the number of threads in config.pbtxt."""
        config = json.loads(args["model_config"])
        torch.set_num_threads(int(config_parameters(args["model_config"]).get("INTRA_OP_THREAD_COUNT", "1")))
        path = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated upstream
            self.module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        self.input = config["input"][0]["name"]
        self.output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch, and split the output."""
        arrays = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        with torch.inference_mode():
            batch = torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
            result = self.module(batch).numpy()
        parts = np.split(result, np.cumsum([len(array) for array in arrays])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self.output, part)]) for part in parts]
