"""Serving: a bundle in, answers out, by three servers side by side.

``settings`` (and ``tuning``) -> ``deployment`` (which bundles are served) -> ``runtimes`` (pixels to probabilities) ->
``clients`` (one interface over the servers) -> ``servers`` (what a supervisor needs of each) -> ``stack`` (local
processes), ``container`` (one server in a container) and ``verify`` (proof that the servers agree).

``fastapi_server``, ``torchserve_server`` and ``triton_server`` are what runs inside each server.
"""

import os
import sys

# onnxruntime's official builds send usage data to their maker unless this is set before it is first imported.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO's package reports each import to its maker, unless this module cannot be imported: then it has a stub instead.
# https://github.com/openvinotoolkit/openvino/blob/master/tools/ovc/openvino/tools/ovc/telemetry_utils.py
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
