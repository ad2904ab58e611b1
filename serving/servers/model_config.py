"""Our settings in a model configuration as Triton (and the FastAPI service) report it.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from serving.servers.server import EffectiveSettings

_RUNTIMES: Final = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "torchscript", "openvino": "openvino"}


def settings_of_classifier(
    classifier: Mapping[str, Any], preprocess: Mapping[str, Any], admission: Mapping[str, Any]
) -> EffectiveSettings:
    """The settings in the configurations of three steps."""
    delay_us = int(classifier.get("dynamic_batching", {}).get("max_queue_delay_microseconds", 0))
    parameters = _parameters(classifier)
    ours = json.loads(parameters.get("settings", "{}"))  # of a python model
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
