"""What runs inside Triton, and how it is configured.

``repository`` renders model_repository/ for a bundle, ``environment`` finds the Triton of the nvidia-pytriton wheel.
``backend`` is the image model in Triton's stub process; ``image_model``, ``pipeline`` and ``admission`` are its logic, which
knows nothing of Triton. ``control`` and ``stubs`` are for the supervisor of a running server.
"""
