"""Encoded images in, tickets int64 `[N, 2]` out; or a refusal."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from bundle.errors import OverloadedError
from serving.triton_server.parameters import config_parameters, open_admission, refusal


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the admission table."""
        parameters = config_parameters(args["model_config"])
        self.queue_size = int(parameters["queue_size"])
        self.admission = open_admission(parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Each request gets its own response."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "image").shape()[0]
        tickets = self.admission.take(images)
        if tickets is None:
            message = f"{self.queue_size} images wait already, or more than can be answered in time"
            return refusal(OverloadedError(message))
        return pb_utils.InferenceResponse([pb_utils.Tensor("ticket", np.array(tickets, np.int64))])
