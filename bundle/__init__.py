"""The bundle: what training promises to serving.

In the order of the data: ``manifest`` (the signature), ``store`` (bundles on disk), ``jpeg`` and ``preprocess`` (bytes to
pixels), ``postprocess`` (probabilities to classes), ``golden`` (is an answer right?), ``schemas`` (the public JSON),
``errors``.

It imports nothing else of Trident: training, serving and the load test all build on it.
"""
