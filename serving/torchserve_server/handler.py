"""TorchServe's handler: request bodies in, answers out, by the shared preprocessing and runtimes.

torch-model-archiver copies this file into the archive beside the bundle's files. TorchServe imports it there and
instantiates its only class. Members of a batch are independent: a bad image gets its own status, the others their
answers.
"""

import base64
import binascii
import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from bundle.errors import EmptyImageError, RequestError, TridentError, UnauthorizedError
from bundle.postprocess import TOP_K_HEADER, AnswerWriter, parse_top_k
from bundle.preprocess import Pixels, preprocess
from bundle.schemas import problem
from bundle.store import read_bundle
from serving.api_keys import ApiKeys, given_key
from serving.runtimes import ready_runtime
from serving.settings import ServingSettings
from serving.torchserve_server.worker_socket import buffer_socket

log = logging.getLogger(__name__)
# TorchServe logs one line per request on the root logger, and its metrics at INFO on ts.metrics.
logging.getLogger().setLevel(logging.WARNING)
logging.getLogger("ts.metrics").setLevel(logging.INFO)
log.setLevel(logging.INFO)


class TridentHandler:
    """One copy of the model in one worker process."""

    def initialize(self, context: Any) -> None:
        """Load the model, warm it up, and reproduce its golden answers. Then TorchServe counts the worker as ready."""
        self.settings = ServingSettings(**context.model_yaml_config["trident"]).of("torchserve")  # and TRIDENT_API_KEYS
        self.keys = ApiKeys(self.settings.api_keys)
        self.bundle = read_bundle(Path(context.system_properties["model_dir"]))
        manifest = self.bundle.manifest
        self.answers = AnswerWriter(manifest.model, manifest.version, manifest.labels)
        self.runtime = ready_runtime(self.bundle, self.settings)
        buffer_socket()
        log.info("%s is ready: %s, %d threads", self.bundle.name, self.settings.runtime, self.settings.threads)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one row per request."""
        began = time.perf_counter()
        answers: list[bytes] = [b""] * len(rows)
        members: list[tuple[int, int, Pixels]] = []
        for index, row in enumerate(rows):
            started = time.perf_counter()
            try:
                # A describe request has only this header; a client's request has at least an empty body.
                if not row and _header(context, index, "describe") == "True":
                    answers[index] = self._describe()
                    continue
                self._admit(context, index, row)
                top_k = parse_top_k(_header(context, index, TOP_K_HEADER) or row.get("top_k"))
                pixels = preprocess(_image(row), self.bundle.manifest.input, self.settings.max_image_pixels)
                context.set_response_header(
                    index, "Server-Timing", f"decode;dur={(time.perf_counter() - started) * 1000:.3f}"
                )
                members.append((index, top_k, pixels))
            except TridentError as error:
                answers[index] = _refuse(context, index, error)
            except Exception:  # an exception would fail the whole batch
                log.exception("internal error")
                answers[index] = _refuse(
                    context, index, TridentError("an internal error occurred; see the server's log")
                )
        if members:
            try:
                self._infer(members, answers, context)
            except Exception:  # for an exception TorchServe answers 503, as if it were overloaded
                log.exception("internal error")
                failed = TridentError("an internal error occurred; see the server's log")
                for index, _, _ in members:
                    answers[index] = _refuse(context, index, failed)
        _observe(context, "trident_handler_seconds", time.perf_counter() - began)
        return answers

    def _admit(self, context: Any, index: int, row: Mapping[str, Any]) -> None:
        """Check the API key. Over gRPC, which passes no headers on, it is the input `api_key`."""
        if self.keys:
            headers = {
                key.lower().encode(): value.encode()
                for key, value in _headers(context, index).items()
                if isinstance(value, str)  # TorchServe adds entries of other types
            }
            if not self.keys.accepts(given_key(headers) or _key_among(row)):
                raise UnauthorizedError("send an API key as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")

    def _describe(self) -> bytes:
        """The settings of this worker, for management requests with `customized=true`."""
        shown = {"runtime", "precision", "device", "threads", "max_image_pixels"}
        return to_json(self.settings.model_dump(mode="json", include=shown))

    def _infer(self, members: Sequence[tuple[int, int, Pixels]], answers: list[bytes], context: Any) -> None:
        started = time.perf_counter()
        probabilities = self.runtime.infer(np.stack([pixels for _, _, pixels in members]))
        seconds = time.perf_counter() - started
        _observe(context, "trident_inference_seconds", seconds)
        inference = f"inference;dur={seconds * 1000:.3f}"
        for (index, top_k, _), row in zip(members, probabilities, strict=True):
            answers[index] = self.answers.answer(row, top_k)
            decode = context.get_response_headers(index)["Server-Timing"]
            context.set_response_header(index, "Server-Timing", f"{decode}, {inference}")
            context.set_response_content_type(index, "application/json")
            context.set_response_status(200, "OK", index)


def _observe(context: Any, name: str, seconds: float) -> None:
    """Observe a value in a histogram that configuration.METRICS_YAML declares."""
    from ts.metrics.metric_type_enum import MetricTypes  # TorchServe's package exists only in its workers

    context.metrics.add_time(name, seconds, unit="s", metric_type=MetricTypes.HISTOGRAM)


def _header(context: Any, index: int, name: str) -> str | None:
    """A request header. TorchServe keeps the client's upper and lower case."""
    return next((value for key, value in _headers(context, index).items() if key.lower() == name), None)


def _headers(context: Any, index: int) -> Mapping[str, str]:
    headers: Mapping[str, str] = context.get_all_request_header(index)
    return headers


def _key_among(row: Mapping[str, Any]) -> bytes:
    """The input `api_key`. In a multipart form it may be text, or any JSON value."""
    key = row.get("api_key")
    if isinstance(key, str):
        return key.encode(errors="surrogatepass")
    return bytes(key) if isinstance(key, bytes | bytearray) else b""


def _image(row: Mapping[str, Any]) -> bytes:
    """The encoded image. TorchServe calls a raw body `body`, decodes a JSON body, and keeps the names of multipart fields."""
    body = next((row[key] for key in ("body", "file", "data") if row.get(key) is not None), None)
    if isinstance(body, dict):
        try:
            body = base64.b64decode(body["image_b64"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise RequestError("the body must be JSON {'image_b64': '<base64>'}") from error
    if body is not None and not isinstance(body, bytes | bytearray):
        raise RequestError("the body must be an image, a form with a field `file`, or JSON {'image_b64': '<base64>'}")
    if not body:
        raise EmptyImageError("the image has no bytes")
    return bytes(body)


def _refuse(context: Any, index: int, error: TridentError) -> bytes:
    context.set_response_content_type(index, "application/problem+json")
    context.set_response_status(error.status, HTTPStatus(error.status).phrase, index)
    return problem(error.status, error.kind, error.title, error.message).model_dump_json().encode()
