"""Metrics for Prometheus. Names and units follow https://prometheus.io/docs/practices/naming/.

Observations are collected in plain numbers (`Tally`). `flush` passes them to prometheus_client a few times a second and
before each scrape. Several worker processes (`__main__` sets PROMETHEUS_MULTIPROC_DIR) write their numbers to files; the
worker that answers /metrics adds all of them up.
"""

import contextlib
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from bundle.errors import TridentError
from bundle.provenance import git_revision, package_versions

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES: Final = ("decode", "queue", "inference")
NO_MODEL: Final = "-"


class Tally:
    """Observations that a histogram has not received yet.

    An observation costs two additions here. In prometheus_client it costs a lock, a search in Python and several calls;
    five of them took a sixth of a small request's time.
    """

    __slots__ = ("_bounds", "_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Pass the observations on. Uses private attributes, as the public `observe` takes one value at a time."""
        for bucket, count in zip(self._histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The metrics of one model."""

    request_duration: Tally
    decode: Tally
    queue: Tally
    inference: Tally
    batch_size: Tally
    queue_depth: Gauge
    on_event_loop: Gauge

    def flush(self, depth: int, *, on_event_loop: bool) -> None:
        """Pass the observations on to prometheus_client."""
        for tally in (self.request_duration, self.decode, self.queue, self.inference, self.batch_size):
            tally.flush()
        self.queue_depth.set(depth)
        self.on_event_loop.set(on_event_loop)


class Metrics:
    """The metrics of one process, with their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "trident_requests",
            "Answered requests, by status code; 499: the client disconnected.",
            ["model", "code"],
            registry=registry,
        )
        self._rejected = Counter(
            "trident_rejected",
            "Refused requests: client errors, overload, missed deadlines. By reason.",
            ["reason"],
            registry=registry,
        )
        self._request_duration = Histogram(
            "trident_request_duration_seconds",
            "Time from a request's headers to its response, of successful requests.",
            ["model"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._stage_duration = Histogram(
            "trident_stage_duration_seconds",
            f"Time of an image in each stage: {', '.join(STAGES)}.",
            ["model", "stage"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._batch_size = Histogram(
            "trident_batch_size", "Images per batch.", ["model"], buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue_depth = Gauge(
            "trident_queue_depth",
            "Images that wait or are being classified.",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._on_event_loop = Gauge(
            "trident_batches_on_event_loop",
            "How many worker processes run the model's batches on the event loop; the others use a thread.",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._in_flight = Gauge(
            "trident_requests_in_flight", "Requests in flight.", multiprocess_mode="livesum", registry=registry
        )
        self._model_info = Gauge(
            "trident_model_info",
            "1 for each loaded model version.",
            ["model", "version", "runtime", "precision", "device"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        versions = package_versions(
            ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "fastapi", "uvicorn", "pillow")
        )
        names = [name.replace("-", "_") for name in versions]
        build_info = Gauge(
            "trident_build_info",
            "1; the labels are the versions of the software.",
            ["revision", *names],
            multiprocess_mode="livemax",
            registry=registry,
        )
        build_info.labels(git_revision() or "unknown", *versions.values()).set(1)
        self._answers: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._models: dict[str, ModelMetrics] = {}

    def of_model(self, model: str) -> ModelMetrics:
        """The metrics of a model; created at the first call."""
        if (found := self._models.get(model)) is None:
            decode, queue, inference = (Tally(self._stage_duration.labels(model, stage), BUCKETS_S) for stage in STAGES)
            found = self._models[model] = ModelMetrics(
                request_duration=Tally(self._request_duration.labels(model), BUCKETS_S),
                decode=decode,
                queue=queue,
                inference=inference,
                batch_size=Tally(self._batch_size.labels(model), BATCH_BUCKETS),
                queue_depth=self._queue_depth.labels(model),
                on_event_loop=self._on_event_loop.labels(model),
            )
        return found

    def answered(self, model: str, status: int, seconds: float) -> None:
        """Count an answered request. The duration is recorded only for status 200."""
        self._answers[model, status] += 1
        if status == 200:
            self.of_model(model).request_duration.observe(seconds)

    def refused(self, error: Exception) -> None:
        """Count a refused request. Internal errors are not counted here."""
        if isinstance(error, TridentError) and error.status != TridentError.status:
            self._rejected.labels(error.kind).inc()

    def flush(self, in_flight: int, queue_depths: Mapping[str, int], on_event_loop: Collection[str] = ()) -> None:
        """Pass the collected observations on to prometheus_client, and set the gauges.

        Args:
            queue_depths: images that wait or are being classified, by model.
            on_event_loop: the models whose batches run on the event loop.
        """
        self._in_flight.set(in_flight)
        for (model, status), count in self._answers.items():
            self._requests.labels(model, str(status)).inc(count)
        self._answers.clear()
        for name, metrics in self._models.items():
            metrics.flush(queue_depths.get(name, 0), on_event_loop=name in on_event_loop)

    def set_model(self, model: str, version: int, runtime: str, precision: str, device: str, *, loaded: bool) -> None:
        """Show that a version was loaded or unloaded."""
        labels = (model, str(version), runtime, precision, device)
        self._model_info.labels(*labels).set(1 if loaded else 0)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes, for all worker processes."""
        folder = os.environ.get(MULTIPROCESS)
        if folder is None:
            return generate_latest(self.registry)
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """Delete the gauges of workers that have ended. Their counters stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            with contextlib.suppress(FileNotFoundError):  # another scrape has deleted it
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
