"""Encoded images in, uint8 pixels `[N, 3, H, W]` out, by the preprocessing that all servers share."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from bundle.errors import BodyTooLargeError, TridentError
from bundle.manifest import Manifest
from bundle.preprocess import Pixels, preprocess
from serving.triton_server.parameters import config_parameters, open_admission, refusal, tickets_in


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest, which `repository` has put beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.input = Manifest.model_validate_json((folder / "manifest.json").read_text()).input
        parameters = config_parameters(args["model_config"])
        self.max_image_pixels = int(parameters["max_image_pixels"])
        self.max_body_bytes = int(parameters["max_body_bytes"])
        self.admission = open_admission(parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request. A damaged image fails only its own request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        tickets = tickets_in(pb_utils.get_input_tensor_by_name(request, "ticket").as_numpy())
        try:
            self.admission.check_in_time(tickets)
            pixels = [self._preprocess(data) for data in images]
        except TridentError as error:
            self.admission.withdraw(tickets)
            return refusal(error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pixels))])

    def _preprocess(self, data: bytes) -> Pixels:
        if len(data) > self.max_body_bytes:
            raise BodyTooLargeError(f"the image has {len(data)} bytes; at most {self.max_body_bytes} are accepted")
        return preprocess(data, self.input, self.max_image_pixels)
