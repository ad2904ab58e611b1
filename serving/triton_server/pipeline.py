"""One batch: decode, classify, answer."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from bundle.errors import DeadlineExceededError, TridentError
from bundle.manifest import Manifest
from bundle.postprocess import AnswerWriter, Probabilities
from bundle.preprocess import Pixels, preprocess
from serving.triton_server.job import Job, Outcome

Infer = Callable[[Pixels], Probabilities]


class Pipeline:
    """Jobs in, an outcome for each out. A job fails alone: with a damaged image, or if its time is up.

    Args:
        infer: uint8 `[N, 3, H, W]` -> float32 `[N, classes]`.
    """

    def __init__(self, manifest: Manifest, infer: Infer, *, max_image_pixels: int, timeout_s: float) -> None:
        self._input = manifest.input
        self._answers = AnswerWriter(manifest.model, manifest.version, manifest.labels)
        self._infer = infer
        self._max_image_pixels = max_image_pixels
        self._timeout_s = timeout_s
        # So far. Times are those of an image's whole batch, summed over the images.
        self.images = self.batches = 0
        self.queue_s = self.decode_s = self.inference_s = 0.0

    def decode(self, data: bytes) -> Pixels:
        """Encoded image -> uint8 `[3, H, W]`.

        Raises:
            ImageError: it cannot be decoded.
        """
        return preprocess(data, self._input, self._max_image_pixels)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcomes, in the order of the jobs. What `infer` raises is raised."""
        started = time.monotonic()
        decoded = [self._decoded(job) for job in jobs]
        pixels = [array for arrays in decoded if isinstance(arrays, list) for array in arrays]
        if not pixels:
            return [part for part in decoded if isinstance(part, TridentError)]
        batched = time.monotonic()
        probabilities = self._infer(np.stack(pixels))
        self._count(jobs, len(pixels), started, batched)
        return self._outcomes(jobs, decoded, probabilities)

    def _count(self, jobs: Sequence[Job], images: int, started: float, batched: float) -> None:
        now = time.monotonic()
        self.queue_s += sum(started - job.arrived for job in jobs)
        self.decode_s += images * (batched - started)
        self.inference_s += images * (now - batched)
        self.images += images
        self.batches += 1

    def _decoded(self, job: Job) -> list[Pixels] | TridentError:
        try:
            self._check_in_time(job)
            if not job.decoding:
                return [self.decode(data) for data in job.images]
            return [
                self.decode(data) if decoding.cancel() else decoding.result()
                for data, decoding in zip(job.images, job.decoding, strict=True)
            ]
        except TridentError as error:
            for decoding in job.decoding:
                decoding.cancel()
            return error

    def _outcomes(
        self, jobs: Sequence[Job], decoded: Sequence[list[Pixels] | TridentError], probabilities: Probabilities
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        start = 0
        for job, part in zip(jobs, decoded, strict=True):
            if isinstance(part, TridentError):
                outcomes.append(part)
                continue
            rows = probabilities[start : start + len(part)]
            start += len(part)
            try:
                self._check_in_time(job)
                outcomes.append([self._answers.answer(row, job.top_k) for row in rows])
            except DeadlineExceededError as error:
                outcomes.append(error)
        return outcomes

    def _check_in_time(self, job: Job) -> None:
        if time.monotonic() - job.arrived > self._timeout_s:
            raise DeadlineExceededError("the answer was not ready in time")
