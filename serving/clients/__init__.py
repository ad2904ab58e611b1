"""Three servers, one interface: an image's bytes in, a `Prediction` out, over HTTP or gRPC.

``client`` is that interface, ``connect`` makes one by protocol. ``wire`` and ``grpc_wire`` say what each server's
requests and responses look like (without any network library, so that the load generator can use its own),
``http_client`` and ``grpc_client`` send them, ``golden`` compares answers with a bundle's golden ones.
"""
