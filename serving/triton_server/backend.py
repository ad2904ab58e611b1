"""The image model on Triton's python backend: requests and responses, the native classifier, counters.

https://github.com/triton-inference-server/python_backend describes `triton_python_backend_utils`, which only a stub has.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils

from bundle.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    TridentError,
    UnavailableError,
)
from bundle.postprocess import TOP_K_HEADER, Probabilities, parse_top_k
from bundle.preprocess import Pixels
from serving.runtimes import ready_runtime
from serving.triton_server.admission import Admission
from serving.triton_server.image_model import ImageModel
from serving.triton_server.job import Job, Outcome
from serving.triton_server.parameters import NATIVE, bundle_of, config_of, config_parameters, settings_of
from serving.triton_server.pipeline import Infer, Pipeline

_FINAL: Final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_BUSY: Final = (OverloadedError, DeadlineExceededError, UnavailableError)
_FLUSH_S: Final = 0.25
_WARM_UP_BATCHES: Final = 8
_SHORT: Final = 256  # characters; longer parameters are not kept in a cache

# name -> (metric's name, description, kind)
_METRICS: Final = {
    "images": ("trident_images_total", "images that were classified", "COUNTER"),
    "batches": ("trident_batches_total", "batches that were classified", "COUNTER"),
    "queue_s": ("trident_queue_seconds_total", "time that images were held before their batch", "COUNTER"),
    "decode_s": ("trident_decode_seconds_total", "time for decoding an image's batch, summed over images", "COUNTER"),
    "inference_s": ("trident_inference_seconds_total", "the model's time for a batch, summed over images", "COUNTER"),
    "held": ("trident_held_images", "images that wait in the model", "GAUGE"),
}


class ImageBackend:
    """One instance of the image model, in a process of its own. The methods are those of Triton's python models."""

    def __init__(self, args: dict[str, str]) -> None:
        """Load the model, warm it up, and reproduce its golden answers (Triton's native classifier is warmed up by Triton).

        Args:
            args: those of `initialize`.
        """
        config = config_of(args)
        parameters = config_parameters(config)
        self._settings = settings = settings_of(parameters)
        bundle = bundle_of(args)
        native = NATIVE in parameters
        infer: Infer = (
            NativeClassifier(**json.loads(parameters[NATIVE])).infer
            if native
            else ready_runtime(bundle, settings).infer
        )
        self._pipeline = pipeline = Pipeline(
            bundle.manifest, infer, max_image_pixels=settings.max_image_pixels, timeout_s=settings.request_timeout_s
        )
        instances = sum(group["count"] for group in config["instance_group"])
        slots = math.ceil(settings.queue_size / instances) + settings.max_batch_size
        admission = Admission(slots, settings.request_timeout_s, settings.max_batch_size)
        if not native:
            images = [data for _, data in bundle.golden_inputs()]
            _find_pace(pipeline, admission, (images * settings.max_batch_size)[: settings.max_batch_size])
        self._counters = Counters(args, pipeline)
        self._model = ImageModel(
            pipeline,
            admission,
            max_batch_size=settings.max_batch_size,
            queue_size=settings.queue_size,
            # A native classifier has enough instances of this model before it to decode on every core.
            decoders=0 if native else settings.threads - 1,
            on_held=self._counters.set_held,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request; None where it is sent later."""
        responses: list[Any] = [None] * len(requests)
        jobs: list[Job] = []
        numbers: list[int] = []
        for number, request in enumerate(requests):
            try:
                jobs.append(self._job(request))
                numbers.append(number)
            except TridentError as error:
                responses[number] = response_of(error)
        for number, outcome in zip(numbers, self._model.execute(jobs), strict=True):
            if outcome is not None:
                responses[number] = response_of(outcome)
        return responses

    def close(self) -> None:
        """End the threads. Triton calls this when every request is answered."""
        self._model.close()
        self._counters.close()

    def _job(self, request: Any) -> Job:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1).tolist()
        settings = self._settings
        if len(images) > settings.max_batch_size:
            raise RequestError(f"{len(images)} images in one request; at most {settings.max_batch_size} are accepted")
        for data in images:
            if len(data) > settings.max_body_bytes:
                raise BodyTooLargeError(
                    f"the image has {len(data)} bytes; at most {settings.max_body_bytes} are accepted"
                )
        return Job(images, _top_k(request.parameters()), partial(_hold, request))


def _hold(request: Any) -> Callable[[Outcome], None]:
    """How to answer a request after its `execute` call."""
    sender = request.get_response_sender()
    return lambda outcome: sender.send(response_of(outcome), flags=_FINAL)


def _find_pace(pipeline: Pipeline, admission: Admission, images: Sequence[bytes]) -> None:
    """Measure the time per image in full batches."""
    jobs = [Job([data], 1, lambda: lambda _: None) for data in images]
    for _ in range(_WARM_UP_BATCHES):
        started = time.perf_counter()
        pipeline.run(jobs)
        admission.observe(len(jobs), time.perf_counter() - started)


def _top_k(parameters: str) -> int:
    return _known_top_k(parameters) if len(parameters) <= _SHORT else _read_top_k(parameters)


def _read_top_k(parameters: str) -> int:
    """The request parameter `top_k`, or the forwarded header, whose name keeps the client's upper and lower case.

    Args:
        parameters: all of the request's, as JSON.

    Raises:
        RequestError: it is no positive integer.
    """
    found = json.loads(parameters)
    return parse_top_k(next((value for name, value in found.items() if name.lower() in ("top_k", TOP_K_HEADER)), None))


_known_top_k = lru_cache(maxsize=256)(_read_top_k)


def response_of(outcome: Outcome) -> Any:
    """The answers as a BYTES tensor `[N, 1]`; or an error: UNAVAILABLE if the server is overloaded, INVALID_ARG if the
    request is wrong.
    """
    if isinstance(outcome, TridentError):
        return _refusal(outcome)
    answers = np.empty((len(outcome), 1), np.object_)
    answers[:, 0] = outcome
    return pb_utils.InferenceResponse([pb_utils.Tensor("answer", answers)])


def _refusal(error: TridentError) -> Any:
    code = pb_utils.TritonError.INVALID_ARG if error.status < 500 else pb_utils.TritonError.INTERNAL
    if isinstance(error, _BUSY):
        code = pb_utils.TritonError.UNAVAILABLE
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{error.kind}: {error.message}", code))


class NativeClassifier:
    """The classifier on one of Triton's native backends, called from within Triton.

    https://github.com/triton-inference-server/python_backend#business-logic-scripting
    """

    def __init__(self, model: str, version: int, input_name: str, output_name: str) -> None:
        self._model, self._version = model, version
        self._input, self._output = input_name, output_name

    def infer(self, pixels: Pixels) -> Probabilities:
        """Probabilities of a batch. Triton may compute it together with those of other instances."""
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            model_version=self._version,
            requested_output_names=[self._output],
            inputs=[pb_utils.Tensor(self._input, pixels)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        probabilities: Probabilities = pb_utils.get_output_tensor_by_name(response, self._output).as_numpy()
        return probabilities


class Counters:
    """What the pipeline has done, as metrics of Triton. Triton's own statistics see the calls, not the batches.

    An increment costs a message to Triton, so they are sent a few times a second.
    """

    def __init__(self, args: dict[str, str], pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        # The process id: Triton must not share a metric between a model and the one that replaces it.
        labels = {"model": args["model_name"], "version": args["model_version"], "stub": str(os.getpid())}
        families = {
            name: pb_utils.MetricFamily(name=metric, description=text, kind=getattr(pb_utils.MetricFamily, kind))
            for name, (metric, text, kind) in _METRICS.items()
        }
        self._metrics = {name: family.Metric(labels=labels) for name, family in families.items()}
        self._families = families  # their metrics end with them
        self._sent = self._values()  # not what was done to warm up
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counters", daemon=True)
        self._thread.start()

    def set_held(self, images: int) -> None:
        """How many images wait in the model."""
        self._metrics["held"].set(images)

    def close(self) -> None:
        """Send the rest."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        for name, value in self._values().items():
            if value > self._sent[name]:
                self._metrics[name].increment(value - self._sent[name])
                self._sent[name] = value

    def _values(self) -> dict[str, float]:
        pipeline = self._pipeline
        return {
            "images": pipeline.images,
            "batches": pipeline.batches,
            "queue_s": pipeline.queue_s,
            "decode_s": pipeline.decode_s,
            "inference_s": pipeline.inference_s,
        }
