"""The Triton deployment: a bundle -> model repository -> tritonserver.

``repository`` renders model_repository/ for a bundle, ``launch`` starts the server of the nvidia-pytriton wheel on it;
``onnxruntime_backend`` and ``pytorch_backend`` stand in for the backends that the wheel lacks, ``admission`` bounds what
waits, ``parameters`` serves the python models.
"""
