"""Training: a data set in, a bundle out.

In the order of the data: ``settings``, ``datasets`` (images and labels), ``loading`` (augmented, reproducible
batches), ``models`` and ``weights`` (published ones), ``optimisation``, ``trainer`` -> ``checkpoint``; ``run`` puts a run
together with its ``tracking`` and its ``report``. Then ``export`` (checkpoint -> bundle, in the formats and precisions of
``precisions``) and ``pretrained`` (published weights -> bundle).
"""

import os

# onnxruntime's official builds send usage data to their maker unless this is set before it is first imported.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
