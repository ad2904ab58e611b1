"""Probabilities and tickets in, answers (JSON) out, by the postprocessing that all servers share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from pydantic_core import to_json

from bundle.errors import TridentError
from bundle.manifest import Manifest
from bundle.postprocess import TOP_K_HEADER, answer, parse_top_k
from serving.triton_server.parameters import config_parameters, open_admission, refusal, tickets_in


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest, which `repository` has put beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
        self.admission = open_admission(config_parameters(args["model_config"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, and free the slots of its images."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        manifest = self.manifest
        tickets = tickets_in(pb_utils.get_input_tensor_by_name(request, "ticket").as_numpy())
        try:
            self.admission.check_in_time(tickets)
            top_k = parse_top_k(_top_k(request))
        except TridentError as error:
            return refusal(error)
        finally:
            self.admission.release(tickets)
        probabilities = pb_utils.get_input_tensor_by_name(request, "probabilities").as_numpy()
        answers = [
            [to_json(answer(row, manifest.model, manifest.version, manifest.labels, top_k))] for row in probabilities
        ]
        return pb_utils.InferenceResponse([pb_utils.Tensor("answer", np.array(answers, dtype=np.object_))])


def _top_k(request: Any) -> object:
    """The request parameter `top_k`, or the forwarded header, whose name keeps the client's upper and lower case."""
    parameters = json.loads(request.parameters())
    return next((value for name, value in parameters.items() if name.lower() in ("top_k", TOP_K_HEADER)), None)
