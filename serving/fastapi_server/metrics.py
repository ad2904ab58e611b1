"""What Prometheus is told. Names and units follow https://prometheus.io/docs/practices/naming/.

With several worker processes (PROMETHEUS_MULTIPROC_DIR is set, see `__main__`) each writes its numbers to files, and
whichever answers /metrics adds all of them up.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.fastapi_server.batcher import Job
from serving.provenance import git_revision, package_versions

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
NO_MODEL: Final = "-"


@dataclass(frozen=True)
class ModelMetrics:
    """One model's own metrics: looked up once, not at every request."""

    request_duration: Histogram
    decode: Histogram
    queue: Histogram
    inference: Histogram
    batch_size: Histogram
    queue_depth: Gauge


class Metrics:
    """The metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "trident_requests", "Answered requests, by status code.", ["model", "code"], registry=registry
        )
        self._rejected = Counter(
            "trident_rejected", "Requests refused without work, by reason.", ["reason"], registry=registry
        )
        self._request_duration = Histogram(
            "trident_request_duration_seconds",
            "From a request's headers to its answer.",
            ["model"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._stage_duration = Histogram(
            "trident_stage_duration_seconds",
            "A picture's time in each stage: decode, queue, inference.",
            ["model", "stage"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._batch_size = Histogram(
            "trident_batch_size", "Pictures per batch.", ["model"], buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue_depth = Gauge(
            "trident_queue_depth",
            "Pictures that wait or are in the model.",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.in_flight = Gauge(
            "trident_requests_in_flight", "Requests under way.", multiprocess_mode="livesum", registry=registry
        )
        self._model_info = Gauge(
            "trident_model_info",
            "1 for each loaded model version.",
            ["model", "version", "runtime", "precision", "device"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        versions = package_versions(("onnxruntime", "onnxruntime-gpu", "torch", "fastapi", "uvicorn", "pillow"))
        names = [name.replace("-", "_") for name in versions]
        build_info = Gauge(
            "trident_build_info",
            "1; the labels say what runs.",
            ["revision", *names],
            multiprocess_mode="livemax",
            registry=registry,
        )
        build_info.labels(git_revision() or "unknown", *versions.values()).set(1)
        # Children are looked up once: `labels()` takes a lock and hashes strings every time.
        self.of_model = cache(self._of_model)
        self.answered = cache(self._requests.labels)
        self.rejected = cache(self._rejected.labels)

    def _of_model(self, model: str) -> ModelMetrics:
        return ModelMetrics(
            request_duration=self._request_duration.labels(model),
            decode=self._stage_duration.labels(model, "decode"),
            queue=self._stage_duration.labels(model, "queue"),
            inference=self._stage_duration.labels(model, "inference"),
            batch_size=self._batch_size.labels(model),
            queue_depth=self._queue_depth.labels(model),
        )

    def batch_done(self, model: str, jobs: Sequence[Job], depth: int) -> None:
        """Pictures of one batch are through (or were refused)."""
        metrics = self.of_model(model)
        metrics.queue_depth.set(depth)
        size = 0
        for job in jobs:
            if job.probabilities is not None:
                size = job.batch_size
                metrics.decode.observe(job.decode_s)
                metrics.queue.observe(job.queue_s)
                metrics.inference.observe(job.inference_s)
        if size:
            metrics.batch_size.observe(size)

    def set_model(self, model: str, version: int, runtime: str, precision: str, device: str, *, loaded: bool) -> None:
        """A version was loaded or dropped."""
        labels = (model, str(version), runtime, precision, device)
        self._model_info.labels(*labels).set(1 if loaded else 0)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes; of all worker processes."""
        folder = os.environ.get(MULTIPROCESS)
        if folder is None:
            return generate_latest(self.registry)
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """A worker that is gone has no queue and no requests under way; its counters stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
