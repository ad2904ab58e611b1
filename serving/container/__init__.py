"""A server in a container: the entry point (``python -m serving.container``), its health check, and the publishing of
bundles to the servers.
"""
