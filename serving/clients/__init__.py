"""Three servers, one interface: an encoded image in, a `Prediction` out, over HTTP or gRPC.

``client`` is that interface, ``connect`` makes one for an ``endpoint`` and a protocol. ``dialect`` is what clients know
about a server: ``fastapi``, ``torchserve`` and ``triton`` hold its requests and responses, health endpoints and metrics.
``http_client`` and ``grpc_client`` send them; the load generator does so by its own transport. ``golden`` compares
answers with a bundle's golden examples, ``traffic`` does so continuously.
"""
