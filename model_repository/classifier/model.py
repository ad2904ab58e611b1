"""Pixels in, probabilities out, by the runtimes that all servers share; for `triton_classifier = "python"`.

One instance is one process with its own copy of the model. The whole bundle is beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from bundle.store import read_bundle
from serving.runtimes import ready_runtime
from serving.settings import ServingSettings
from serving.triton_server.parameters import config_parameters


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, warm it up, and reproduce its golden answers."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = ServingSettings.model_validate_json(config_parameters(args["model_config"])["settings"])
        self.runtime = ready_runtime(read_bundle(folder / "bundle"), settings.of("triton"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch, and split the probabilities."""
        pixels = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        probabilities = self.runtime.infer(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        parts = np.split(probabilities, np.cumsum([len(part) for part in pixels])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", part)]) for part in parts]
