"""The bodies of the Open Inference Protocol: JSON, and the binary tensor extension, in both directions.

https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from bundle.errors import BodyTooLargeError, RequestError

HEADER_LENGTH: Final = "inference-header-content-length"
# Parsing JSON blocks the event loop: about 0.1 s for half a million values.
MAX_JSON_VALUES: Final = 2**19
Array = npt.NDArray[Any]


class InputTensor(BaseModel):
    """One input. Its values are in `data`, or in binary after the JSON."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """One requested output."""

    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1, max_length=8)
    outputs: list[RequestedOutput] = []

    def wants_binary(self, output: str) -> bool:
        """Whether this output is requested in binary."""
        default = bool(self.parameters.get("binary_data_output", False))
        return next((bool(o.parameters.get("binary_data", default)) for o in self.outputs if o.name == output), default)


def parse_infer_request(body: bytes, header_length: str | None) -> tuple[InferRequest, bytes]:
    """Split a body into the JSON and the binary tensors after it.

    Raises:
        RequestError: the body is malformed.
        BodyTooLargeError: the JSON has too many values.
    """
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
            raise RequestError(
                f"Inference-Header-Content-Length {header_length[:20]!r} does not fit a body of {len(body)} bytes"
            )
        length = int(header_length)
    text = body[:length]
    if text.count(b",") + text.count(b"[") > MAX_JSON_VALUES:
        raise BodyTooLargeError(f"more than {MAX_JSON_VALUES} values in JSON; send large tensors in binary")
    try:
        return InferRequest.model_validate_json(text), body[length:]
    except ValidationError as error:
        entry = error.errors()[0]
        raise RequestError(
            f"the inference request is malformed: {'.'.join(map(str, entry['loc']))}: {entry['msg']}"
        ) from error


def read_tensors(request: InferRequest, binary: bytes) -> dict[str, tuple[InputTensor, Array]]:
    """The values of every input: uint8, or bytes objects for BYTES.

    Raises:
        RequestError: a size, shape or value is invalid.
    """
    tensors = {}
    position = 0
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is not None:
            if not isinstance(size, int) or size < 0 or position + size > len(binary):
                raise RequestError(f"input {tensor.name!r}: binary_data_size does not fit the body")
            tensors[tensor.name] = tensor, _from_binary(tensor, binary[position : position + size])
            position += size
        elif tensor.data is not None:
            tensors[tensor.name] = tensor, _from_json(tensor)
        else:
            raise RequestError(f"input {tensor.name!r} has neither data nor binary_data_size")
    if position != len(binary):
        raise RequestError(f"{len(binary) - position} bytes of binary data do not belong to any input")
    return tensors


def write_infer_response(
    head: Mapping[str, Any], outputs: Sequence[tuple[str, str, Array, bool]]
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if binary tensors follow (else None).

    Args:
        head: model_name, model_version, id, parameters.
        outputs: name, datatype (FP32 or BYTES), values, and whether to write them in binary.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, datatype, values, in_binary in outputs:
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if in_binary:
            binary.append(_to_binary(datatype, values))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = (
                [_text(value) for value in values.ravel()] if datatype == "BYTES" else values.ravel().tolist()
            )
        described.append(entry)
    header = to_json({**head, "outputs": described})
    return b"".join([header, *binary]), len(header) if binary else None


def _from_binary(tensor: InputTensor, data: bytes) -> Array:
    if tensor.datatype == "UINT8":
        return _shaped(tensor, np.frombuffer(data, np.uint8))
    if tensor.datatype == "BYTES":
        return _shaped(tensor, _as_objects(_split(tensor, data)))
    raise RequestError(f"input {tensor.name!r}: datatype {tensor.datatype!r} is not supported; use UINT8 or BYTES")


def _from_json(tensor: InputTensor) -> Array:
    assert tensor.data is not None
    if tensor.datatype == "UINT8":
        try:
            values = bytes(_flat(tensor.data))
        except (ValueError, TypeError) as error:
            raise RequestError(f"input {tensor.name!r}: values must be integers from 0 to 255") from error
        return _shaped(tensor, np.frombuffer(values, np.uint8))
    if tensor.datatype == "BYTES":
        try:
            return _shaped(tensor, _as_objects([base64.b64decode(text, validate=True) for text in _flat(tensor.data)]))
        except (binascii.Error, ValueError, TypeError) as error:
            raise RequestError(f"input {tensor.name!r}: BYTES in JSON must be base64 strings") from error
    raise RequestError(f"input {tensor.name!r}: datatype {tensor.datatype!r} is not supported; use UINT8 or BYTES")


def _split(tensor: InputTensor, data: bytes) -> list[bytes]:
    """Split BYTES data: before each element, its length in 4 bytes, little endian."""
    elements = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if position + length > len(data):
            raise RequestError(f"input {tensor.name!r}: the BYTES data is truncated")
        elements.append(data[position : position + length])
        position += length
    return elements


def _shaped(tensor: InputTensor, values: Array) -> Array:
    try:
        return values.reshape(tensor.shape)
    except (ValueError, OverflowError) as error:
        raise RequestError(
            f"input {tensor.name!r}: {values.size} values do not fill the shape {tensor.shape}"
        ) from error


def _as_objects(elements: Sequence[bytes]) -> Array:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


def _flat(data: Any) -> list[Any]:
    return [value for item in data for value in _flat(item)] if isinstance(data, list) else [data]


def _to_binary(datatype: str, values: Array) -> bytes:
    if datatype == "FP32":
        return values.astype("<f4", copy=False).tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in values.ravel())


def _text(value: bytes) -> str:
    return value.decode()
