"""One inference request on tensors: its input, its jobs, and its response. The fast path and the route share this."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from bundle.errors import RequestError, TridentError, UnsupportedMediaTypeError
from bundle.postprocess import TOP_K_HEADER, parse_top_k
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.model_request import HttpResponse, ModelRequest, probabilities_of
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.oip.served_model import ServedModel, find_served
from serving.fastapi_server.oip.tensors import (
    HEADER_LENGTH,
    Array,
    InferRequest,
    InputTensor,
    parse_infer_request,
    read_tensors,
    write_infer_response,
)
from serving.fastapi_server.service import Service


class TensorRequest(ModelRequest):
    """A request to `/v2/models/MODEL[/versions/VERSION]/infer`."""

    __slots__ = ("_inference", "_name", "_version", "_waiting")
    is_inference_protocol: ClassVar[bool] = True

    def __init__(self, service: Service, headers: Mapping[bytes, bytes], name: str, version: str | None) -> None:
        super().__init__(service, headers)
        self._name = name
        self._version = version
        self._inference: Inference | None = None
        self._waiting = 0

    def _check(self, query_string: bytes) -> None:
        self._find()
        check_encoding(self._headers)

    def submit(self, body: bytes, on_done: Callable[[], None]) -> None:
        """Queue the tensor, or every image of it."""
        inference = self._inference = Inference(self._find(), body, self._headers)
        batcher = self._batcher(inference.served.hosted)
        timeout_s = self._time_left_s(inference.timeout_s(self._service.settings.request_timeout_s))
        payloads = inference.payloads
        self._waiting = len(payloads)

        def one_is_done(_: Job) -> None:
            self._waiting -= 1
            if not self._waiting:
                on_done()

        batcher.check_count(len(payloads))
        try:
            for payload in payloads:
                self._jobs.append(batcher.submit(payload, timeout_s, one_is_done))
        except TridentError:
            self._cancel_jobs()
            raise

    def respond(self) -> HttpResponse:
        """The response with the output tensor. As in Triton, one failed image fails the request."""
        inference = self._inference
        assert inference is not None
        body, header_length = inference.write(self._jobs)
        self._model = self._name
        if header_length is None:
            return self._end(200, b"application/json", body)
        length = (HEADER_LENGTH.encode(), b"%d" % header_length)
        return self._end(200, b"application/octet-stream", body, length)

    def _end(self, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> HttpResponse:
        if status != 200:  # failed requests may name any model; as labels, those names would grow without bound
            self._model = NO_MODEL
        return super()._end(status, content_type, body, *more)

    def _find(self) -> ServedModel:
        return find_served(self._service.hosting, self._name, self._version)


def check_encoding(headers: Mapping[bytes, bytes]) -> None:
    """Raises: UnsupportedMediaTypeError: the body is compressed."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedMediaTypeError("compressed bodies are not accepted")


class Inference:
    """A request's input for a model, and the form in which it wants the output.

    Raises:
        RequestError: the body is malformed, or does not match the model's input and output.
        BodyTooLargeError: its JSON has too many values.
    """

    def __init__(self, served: ServedModel, body: bytes, headers: Mapping[bytes, bytes]) -> None:
        header_length = headers.get(HEADER_LENGTH.encode())
        self.served = served
        self._parsed, values = _read(
            served, body, header_length.decode("latin-1") if header_length is not None else None
        )
        self.payloads: Sequence[bytes | Array]
        if served.is_classifier:
            self.payloads = [np.array(values)]  # a copy: runtimes refuse read-only memory
            self._top_k = 0
        else:
            self.payloads = values.ravel().tolist()
            top_k = headers.get(TOP_K_HEADER.encode())
            self._top_k = parse_top_k(self._parsed.parameters.get("top_k", top_k))

    def timeout_s(self, default_s: float) -> float:
        """The time limit: Triton's request parameter `timeout`, in microseconds, but at most `default_s`.

        Raises:
            RequestError: it is not a positive number.
        """
        timeout_us = self._parsed.parameters.get("timeout")
        if timeout_us is None:
            return default_s
        if not isinstance(timeout_us, int) or not 1 <= timeout_us <= 10**12:
            raise RequestError("the parameter `timeout` must be a number of microseconds")
        return min(timeout_us / 1e6, default_s)

    def write(self, jobs: Sequence[Job]) -> tuple[bytes, int | None]:
        """The body of the response, and the length of its JSON if a binary tensor follows.

        Raises:
            TridentError: a job has failed.
        """
        served, output = self.served, self.served.output
        head = {"model_name": served.name, "model_version": str(served.hosted.bundle.manifest.version)}
        if self._parsed.id:
            head["id"] = self._parsed.id
        values = self._output(jobs)
        return write_infer_response(
            head, [(output.name, output.datatype, values, self._parsed.wants_binary(output.name))]
        )

    def _output(self, jobs: Sequence[Job]) -> Array:
        """FP32 `[images, classes]`, or BYTES `[images, 1]`: the JSON answer to each image."""
        if self.served.is_classifier:
            return probabilities_of(jobs[0])
        answers = self.served.hosted.answers
        texts = [answers.answer(probabilities_of(job)[0], self._top_k) for job in jobs]
        return np.array(texts, dtype=np.object_).reshape(-1, 1)


def _read(served: ServedModel, body: bytes, header_length: str | None) -> tuple[InferRequest, Array]:
    """The request, and the values of the model's input.

    Raises:
        RequestError: it is malformed, or does not match the model's input and output.
    """
    if header_length == "0":
        return _read_raw(served, body)
    parsed, binary = parse_infer_request(body, header_length)
    tensors = read_tensors(parsed, binary)
    expected = served.input
    if list(tensors) != [expected.name]:
        raise RequestError(f"{served.name} has one input, {expected.name!r}; received {', '.join(map(repr, tensors))}")
    for output in parsed.outputs:
        if output.name != served.output.name:
            raise RequestError(f"{served.name} has no output {output.name!r}; it has {served.output.name!r}")
    tensor, values = tensors[expected.name]
    fits = len(tensor.shape) == len(expected.shape) and all(
        want in (-1, have) for want, have in zip(expected.shape, tensor.shape, strict=True)
    )
    if tensor.datatype != expected.datatype or not fits or not values.size:
        raise RequestError(
            f"input {tensor.name!r} must be {expected.datatype} {expected.shape}, not {tensor.datatype} {tensor.shape}"
        )
    return parsed, values


def _read_raw(served: ServedModel, body: bytes) -> tuple[InferRequest, Array]:
    """A raw request has no JSON: the body is the one input."""
    expected = served.input
    shape = [1, *expected.shape[1:]]
    values = np.array([[body]], dtype=np.object_) if expected.datatype == "BYTES" else np.frombuffer(body, np.uint8)
    if values.size != np.prod(shape):
        raise RequestError(f"input {expected.name!r} of shape {shape} needs {np.prod(shape)} bytes, not {len(body)}")
    tensor = InputTensor(name=expected.name, shape=shape, datatype=expected.datatype)
    return InferRequest(inputs=[tensor], parameters={"binary_data_output": True}), values.reshape(shape)
