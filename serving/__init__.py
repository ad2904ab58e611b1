"""Serving: a bundle in, answers out, by three servers side by side.

In the order of the data: ``manifest``, ``bundle`` (what training promises), ``preprocess`` -> ``runtimes`` ->
``postprocess`` (an image's way), ``settings`` and ``tuning`` (one file for all servers), ``fastapi_server``,
``torchserve_server``, ``triton_server`` (the three deployments), ``clients`` (one interface over the three), ``stack``
(the three as local processes), ``verify`` (proof that they agree).
"""

import os

# onnxruntime's official builds send usage data to their maker unless this is set before it is first imported.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
