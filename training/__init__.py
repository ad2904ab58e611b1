"""Training: data set in, bundle out.

In the order of the data: ``settings``, ``datasets`` (images and labels), ``loading`` (augmented, reproducible
batches), ``models`` and ``weights`` (published weights), ``optimisation``, ``trainer`` -> ``checkpoint``. ``run`` combines
the trainer with ``tracking`` and the ``report``. ``export`` writes a checkpoint as a bundle, in the formats of
``formats`` and the precisions of ``precisions``; ``comparison`` checks each file against eager PyTorch. ``pretrained``
writes published weights as a bundle.
"""

import os
import sys

# onnxruntime's official builds send usage data to their vendor unless this is set before the first import.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO's package reports each import to its maker, unless this module cannot be imported: then it has a stub instead.
# https://github.com/openvinotoolkit/openvino/blob/master/tools/ovc/openvino/tools/ovc/telemetry_utils.py
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
