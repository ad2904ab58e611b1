"""Pixels in, probabilities out, by the runtimes that all servers share; where Triton has no native backend for them.

One instance is one process with its own copy of the model. The whole bundle is beside this file.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.runtimes import ready_runtime
from serving.triton_server.parameters import bundle_of, config_of, config_parameters, settings_of


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, warm it up, and reproduce its golden answers."""
        self.runtime = ready_runtime(bundle_of(args), settings_of(config_parameters(config_of(args))))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch, and split the probabilities."""
        pixels = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        probabilities = self.runtime.infer(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        parts = np.split(probabilities, np.cumsum([len(part) for part in pixels])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", part)]) for part in parts]
