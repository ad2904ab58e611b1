"""Encoded images in, answers (JSON) out: decoding, the model and the answer in one process, by the code of all servers.

One instance is one process with its own copy of the model. The whole bundle is beside this file.
"""

from typing import Any

from serving.triton_server.backend import ImageBackend


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, warm it up, and reproduce its golden answers."""
        self.backend = ImageBackend(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, or refuse it. A damaged image fails only its own request."""
        return self.backend.execute(requests)

    def finalize(self) -> None:
        """End the model's threads."""
        self.backend.close()
