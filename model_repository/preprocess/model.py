"""Encoded pictures in, uint8 pixels `[N, 3, H, W]` out, by the preprocessing that all servers share."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.errors import TridentError
from serving.manifest import Manifest
from serving.preprocess import preprocess
from serving.triton_server.parameters import config_parameters


class TritonPythonModel:
    """Triton makes one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest, which the repository builder put beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.input = Manifest.model_validate_json((folder / "manifest.json").read_text()).input
        self.max_image_pixels = int(config_parameters(args["model_config"])["max_image_pixels"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Each request gets its own response: a damaged picture is an error to its sender only."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        pictures = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy()
        try:
            pixels = [preprocess(data, self.input, self.max_image_pixels) for data in pictures.reshape(-1)]
        except TridentError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"{error.kind}: {error.message}", pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", np.stack(pixels))])
