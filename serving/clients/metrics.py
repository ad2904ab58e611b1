"""Read what servers count: Prometheus metrics and JSON statistics."""

from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S: Final = 5.0


def get(url: str) -> httpx.Response:
    """A GET's response.

    Raises:
        httpx.HTTPError: there is none, or it is an error.
    """
    response = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
    response.raise_for_status()
    return response


def samples(metrics_url: str) -> list[tuple[str, dict[str, str], float]]:
    """Every sample: its name, its labels and its value.

    Raises:
        httpx.HTTPError, ValueError.
    """
    families = text_string_to_metric_families(get(metrics_url).text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
