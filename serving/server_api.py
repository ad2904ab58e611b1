"""Calls to the servers' own management interfaces: JSON over HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from serving.errors import DeploymentError


def call(
    method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> Any:
    """The JSON in the answer (None if it is empty).

    Raises:
        DeploymentError: the server refused; the message has its reason.
        OSError: it cannot be reached.
    """
    data, sent = None, dict(headers or {})
    if body is not None:
        data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url, data, sent, method=method)  # noqa: S310 - an address of our own
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            text = response.read()
    except urllib.error.HTTPError as error:
        with error:
            raise DeploymentError(f"{method} {url}: {error.code}: {_reason(error.read())}") from error
    return json.loads(text) if text.strip() else None


def _reason(text: bytes) -> str:
    try:
        content = json.loads(text)
        return str(content.get("detail") or content.get("error") or content.get("message") or content)[:1000]
    except (ValueError, AttributeError):
        return text[:500].decode(errors="replace")
