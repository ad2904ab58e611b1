"""The golden answers of a real server, over every protocol."""

from collections.abc import Sequence

from bundle.golden import compare
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint

TOLERANCE = 1e-4


def golden_faults(endpoints: Sequence[Endpoint], bundle: Bundle, *, api_key: str | None = None) -> list[str]:
    """Why answers by default differ from the bundle's golden answers: a line per server, protocol and image."""
    faults = []
    for endpoint in endpoints:
        for protocol in endpoint.protocols:
            with connect(endpoint, bundle.manifest.model, protocol=protocol, api_key=api_key) as client:
                for example in bundle.golden_examples(top_k=3):
                    fault = compare(client.predict(example.data, 3), example.expected, TOLERANCE)
                    if fault is not None:
                        faults.append(f"{endpoint.server} {protocol}, {example.name}: {fault}")
    return faults
