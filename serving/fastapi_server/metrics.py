"""What Prometheus is told. Names and units follow https://prometheus.io/docs/practices/naming/."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "trident_requests", "Requests to /predict by status code.", ["model", "code"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "trident_request_seconds",
            "From the request's first byte to its answer.",
            ["model"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "trident_stage_seconds",
            "Time of a picture in each stage: queue, decode, inference.",
            ["model", "stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "trident_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.model_info = Gauge(
            "trident_model_info", "1 for each loaded model.", ["model", "version", "runtime"], registry=self.registry
        )
