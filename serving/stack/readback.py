"""The settings that the running servers say they run with, in the units of our settings.

TorchServe by its management API (and its handler), Triton by the configuration of its models, FastAPI likewise.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from bundle.store import Bundle
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import API_KEY_HEADER
from serving.server_api import call
from serving.settings import ServingSettings
from serving.torchserve_server.configuration import LOOPBACK, model_config

Shown = dict[str, object]
SHOWN: Final = (
    *("runtime", "workers", "threads", "max_batch_size", "queue_delay_ms", "queue_size"),
    *("request_timeout_s", "max_body_bytes", "max_image_pixels"),
)
_RUNTIMES: Final = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "torchscript"}


def wanted_settings(endpoint: Endpoint, settings: ServingSettings) -> Shown:
    """What a server was asked to do. TorchServe has whole milliseconds, and no batches without a delay."""
    asked = settings.of(endpoint.server)
    wanted: Shown = {name: getattr(asked, name) for name in SHOWN}
    if endpoint.server == "torchserve":
        config = model_config(asked)
        wanted |= {"queue_delay_ms": config["maxBatchDelay"], "request_timeout_s": config["responseTimeout"]}
    return wanted


def read_back(endpoint: Endpoint, bundle: Bundle, settings: ServingSettings) -> Shown:
    """What the server says; without what it does not tell.

    Raises:
        DeploymentError, OSError: it cannot be asked.
    """
    model, version = bundle.manifest.model, bundle.manifest.version
    headers = {} if settings.client_key is None else {API_KEY_HEADER: settings.client_key}
    if endpoint.server == "torchserve":
        management = f"http://{LOOPBACK}:{settings.ports.torchserve_management}"
        (said,) = call("GET", f"{management}/models/{model}/{version}?customized=true")
        return from_torchserve(said)
    if endpoint.server == "triton":
        parts = [f"{model}_v{version}_{part}" for part in ("classifier", "preprocess", "admission")]
        return from_triton(*(call("GET", f"{endpoint.url}/v2/models/{part}/config", headers=headers) for part in parts))
    config = call("GET", f"{endpoint.url}/v2/models/{model}_classifier/versions/{version}/config", headers=headers)
    return from_triton(config, config, config)


def from_torchserve(said: Mapping[str, Any]) -> Shown:
    """From `GET /models/<model>/<version>?customized=true`."""
    queue = said["jobQueueStatus"]
    custom = said.get("customizedMetadata") or {}
    handler = json.loads(custom) if isinstance(custom, str) else custom
    return {
        "workers": said["minWorkers"],
        "max_batch_size": said["batchSize"],
        "queue_delay_ms": said["maxBatchDelay"],  # ms there too
        "queue_size": queue["remainingCapacity"] + queue["pendingRequests"],
        "request_timeout_s": said["responseTimeout"],
        **{name: handler[name] for name in SHOWN if name in handler},
    }


def from_triton(classifier: Mapping[str, Any], preprocess: Mapping[str, Any], admission: Mapping[str, Any]) -> Shown:
    """From the configurations of the three parts (https://github.com/triton-inference-server/common, model_config.proto)."""
    delay_us = int(classifier.get("dynamic_batching", {}).get("max_queue_delay_microseconds", 0))
    parameters = _parameters(classifier)
    ours = json.loads(parameters.get("settings", "{}"))  # of the python backend
    threads = parameters.get("intra_op_thread_count") or parameters.get("INTRA_OP_THREAD_COUNT") or ours.get("threads")
    return {
        "runtime": ours.get("runtime") or _RUNTIMES[classifier["platform"]],
        "workers": sum(int(group["count"]) for group in classifier["instance_group"]),
        "threads": int(threads),
        "max_batch_size": int(classifier["max_batch_size"]),
        "queue_delay_ms": delay_us / 1000,
        "queue_size": int(_parameters(admission)["queue_size"]),
        "request_timeout_s": float(_parameters(admission)["request_timeout_s"]),
        "max_body_bytes": int(_parameters(preprocess)["max_body_bytes"]),
        "max_image_pixels": int(_parameters(preprocess)["max_image_pixels"]),
    }


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
