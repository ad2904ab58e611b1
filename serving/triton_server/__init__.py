"""What runs inside Triton, and how it is configured.

``repository`` renders model_repository/ for a bundle, ``environment`` finds the Triton of the nvidia-pytriton wheel;
``onnxruntime_backend`` and ``pytorch_backend`` stand in for backends that the wheel lacks; ``admission`` bounds the queue,
``parameters`` is for the python models; ``control`` and ``stubs`` are for the supervisor of a running server.
"""
