"""Calls to the servers' own interfaces: health, metrics and management, as JSON over HTTP.

They never go through a proxy, whatever the environment says: the servers are on this machine.
"""

import json
import re
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final

from bundle.errors import DeploymentError

_DIRECT: Final = urllib.request.OpenerDirector()
for _handler in (urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
    _DIRECT.add_handler(_handler)  # no proxies, no redirects, and no exceptions for error statuses


def fetch(url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """A GET's status and body.

    Raises:
        OSError: there is no response.
    """
    return _answer(urllib.request.Request(url, headers=dict(headers or {})), timeout_s)  # noqa: S310


def metric_sum(url: str, pattern: str) -> float | None:
    """The sum of a metric's samples whose name and labels match; None if the server cannot be asked.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    try:
        status, text = fetch(url, timeout_s=2.0)
    except OSError:
        return None
    found = re.findall(rf"^{pattern} (\S+)$", text.decode(), re.MULTILINE)
    return sum(map(float, found)) if status == 200 else None


def metric_samples(url: str, pattern: str) -> list[tuple[str, float]]:
    """The samples of a metric whose name and labels match: what the pattern's group matches, and the value.

    Raises:
        OSError: the server cannot be asked.
    """
    _, text = fetch(url, timeout_s=2.0)
    return [(group, float(value)) for group, value in re.findall(rf"^{pattern} (\S+)$", text.decode(), re.MULTILINE)]


def call(
    method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> Any:
    """The JSON of the response; None if it is empty.

    Raises:
        DeploymentError: the server refused; the message has its reason.
        OSError: it cannot be reached.
    """
    data, sent = None, dict(headers or {})
    if body is not None:
        data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
    status, text = _answer(urllib.request.Request(url, data, sent, method=method), timeout_s)  # noqa: S310
    if status >= 400:
        raise DeploymentError(f"{method} {url}: {status}: {_reason(text)}")
    return json.loads(text) if text.strip() else None


def _answer(request: urllib.request.Request, timeout_s: float) -> tuple[int, bytes]:
    try:
        with _DIRECT.open(request, timeout=timeout_s) as response:
            return response.status, response.read()
    except HTTPException as error:  # the connection ended within the response
        raise ConnectionError(f"{request.full_url}: {error!r}") from error


def _reason(text: bytes) -> str:
    try:
        content = json.loads(text)
        return str(content.get("detail") or content.get("error") or content.get("message") or content)[:1000]
    except (ValueError, AttributeError):
        return text[:500].decode(errors="replace")
