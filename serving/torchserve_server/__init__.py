"""What runs inside TorchServe, and how it is configured.

``configuration`` renders our settings, ``archive`` packs a bundle with ``handler``, which runs in the workers;
``management`` is the API of a running server.
"""
