"""Where the time goes as the server itself counts it: seconds of decode, queue and inference per image, from the
difference of its counters before and after a run.

FastAPI's and TorchServe's are Prometheus metrics, Triton's its statistics extension.
"""

from collections.abc import Callable
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.targets import Target
from serving.clients.http_wire import triton_model

# By stage: seconds so far, and how many images (or executions) they belong to.
Counters = dict[str, tuple[float, float]]
_TIMEOUT_S: Final = 5.0


def read_counters(target: Target) -> Counters | None:
    """The server's counters now; None if it has none that are known here, or does not answer."""
    reader = _READERS.get(target.server)
    if reader is None:
        return None
    try:
        return reader(target)
    except (httpx.HTTPError, KeyError, ValueError):
        return None


def stages_s(before: Counters | None, after: Counters | None) -> dict[str, float]:
    """Mean seconds per image and stage between two readings; empty if one is missing."""
    if before is None or after is None:
        return {}
    means = {}
    for stage, (seconds, count) in after.items():
        earlier_seconds, earlier_count = before.get(stage, (0.0, 0.0))
        if count > earlier_count:
            means[stage] = (seconds - earlier_seconds) / (count - earlier_count)
    return means


def _get(url: str) -> httpx.Response:
    response = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
    response.raise_for_status()
    return response


def _samples(target: Target) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(_get(target.metrics_url).text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def _fastapi(target: Target) -> Counters:
    found: dict[str, list[float]] = {}
    for name, labels, value in _samples(target):
        if name.startswith("trident_stage_duration_seconds_") and labels.get("model") == target.model:
            entry = found.setdefault(labels["stage"], [0.0, 0.0])
            if name.endswith("_sum"):
                entry[0] += value
            elif name.endswith("_count"):
                entry[1] += value
    return {stage: (seconds, count) for stage, (seconds, count) in found.items()}


def _torchserve(target: Target) -> Counters:
    totals: dict[str, float] = {}
    for name, labels, value in _samples(target):
        if labels.get("model_name") == target.model:
            totals[name] = totals.get(name, 0.0) + value
    requests = totals["ts_inference_requests_total"]
    queue = totals["ts_queue_latency_microseconds_total"] / 1e6
    whole = totals["ts_inference_latency_microseconds_total"] / 1e6
    # Its inference latency is the whole request as the frontend sees it: the rest is handler and way to the worker.
    return {"queue": (queue, requests), "handler": (whole - queue, requests)}


def _triton(target: Target) -> Counters:
    models = _get(f"{target.url}/v2/models/stats").json()["model_stats"]
    name = triton_model(target.model, target.version) if target.version is not None else target.model
    stages = {f"{name}_preprocess": "decode", f"{name}_classifier": "inference"}
    counters: Counters = {}
    queue, images = 0.0, 0.0
    for model in models:
        statistics: dict[str, Any] = model["inference_stats"]
        if model["name"] in stages:
            counters[stages[model["name"]]] = _seconds(statistics, "compute_infer", "compute_input", "compute_output")
        if model["name"].startswith(f"{name}_"):
            queue += _seconds(statistics, "queue")[0]
        if model["name"] == f"{name}_classifier":
            images = _seconds(statistics, "queue")[1]
    return {**counters, "queue": (queue, images)} if images else counters


def _seconds(statistics: dict[str, Any], *names: str) -> tuple[float, float]:
    return sum(statistics[name]["ns"] for name in names) / 1e9, float(statistics[names[0]]["count"])


_READERS: Final[dict[str, Callable[[Target], Counters]]] = {
    "fastapi": _fastapi,
    "torchserve": _torchserve,
    "triton": _triton,
}
