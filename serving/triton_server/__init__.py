"""The Triton deployment: a bundle -> model repository -> tritonserver.

``repository`` renders model_repository/ for a bundle, ``launch`` starts the server of the nvidia-pytriton wheel on it;
``onnxruntime_backend`` stands in for the backend that the wheel lacks, ``parameters`` serves the python models.
"""
