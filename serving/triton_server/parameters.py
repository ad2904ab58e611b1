"""What the python models read from config.pbtxt, and their error responses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import DeadlineExceededError, OverloadedError, TridentError
from serving.triton_server.admission import Admission, Ticket


def config_parameters(model_config: str) -> dict[str, str]:
    """The `parameters` of a model configuration, which Triton passes to python models as JSON."""
    parameters = json.loads(model_config).get("parameters", {})
    return {key: value["string_value"] for key, value in parameters.items()}


def open_admission(parameters: dict[str, str]) -> Admission:
    """The admission table that the steps share."""
    return Admission(
        Path(parameters["admission_file"]), int(parameters["slots"]), float(parameters["request_timeout_s"])
    )


def tickets_in(rows: npt.NDArray[np.int64]) -> list[Ticket]:
    """The tickets in an int64 tensor `[N, 2]`."""
    return [(slot, taken) for slot, taken in rows.tolist()]


def refusal(error: TridentError) -> Any:
    """An error response: UNAVAILABLE if the server is overloaded, INVALID_ARG if the request is wrong."""
    import triton_python_backend_utils as pb_utils  # only Triton's python backend has it

    busy = isinstance(error, OverloadedError | DeadlineExceededError)
    code = pb_utils.TritonError.UNAVAILABLE if busy else pb_utils.TritonError.INVALID_ARG
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{error.kind}: {error.message}", code))
