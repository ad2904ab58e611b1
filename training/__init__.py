"""Training: a data set in, a bundle out.

In the order of the data: ``settings``, ``datasets`` (pictures and labels), ``loading`` (augmented, reproducible
batches), ``models``, ``trainer`` -> ``checkpoint``; then ``export`` (checkpoint -> bundle) and ``pretrained``
(published weights -> bundle).
"""

import os

# onnxruntime's official builds send usage data to their maker unless this is set before it is first imported.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
