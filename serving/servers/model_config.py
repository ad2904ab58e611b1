"""Our settings in a model configuration as Triton (and the FastAPI service) report it.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from serving.servers.server import EffectiveSettings

_RUNTIMES: Final = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "torchscript", "openvino": "openvino"}


def settings_of_configs(classifier: Mapping[str, Any], image: Mapping[str, Any]) -> EffectiveSettings:
    """The settings in the configurations of the model that classifies and of the one that takes images; they may be the
    same.
    """
    parameters, ours = _parameters(classifier), _parameters(image)
    if "settings" in ours:  # of a model on Triton's python backend
        ours = json.loads(ours["settings"])
    threads = parameters.get("intra_op_thread_count") or parameters.get("INTRA_OP_THREAD_COUNT") or ours["threads"]
    delay_us = int(classifier.get("dynamic_batching", {}).get("max_queue_delay_microseconds", 0))
    return {
        "runtime": _RUNTIMES.get(classifier["platform"]) or ours["runtime"],
        "workers": sum(int(group["count"]) for group in classifier["instance_group"]),
        "threads": int(threads),
        "max_batch_size": int(classifier["max_batch_size"]),
        "queue_delay_ms": delay_us / 1000,
        "queue_size": int(ours["queue_size"]),
        "request_timeout_s": float(ours["request_timeout_s"]),
        "max_body_bytes": int(ours["max_body_bytes"]),
        "max_image_pixels": int(ours["max_image_pixels"]),
    }


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
