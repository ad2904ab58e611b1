"""From the address of any server to a lane."""

from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from bundle.store import Bundle
from loadtest.errors import TargetError
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import answer_tolerance
from loadtest.machine.resources import listening_pids

_TIMEOUT_S: Final = 10.0
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


def parse_target(entry: str, bundle: Bundle) -> Lane:
    """Parse `NAME=URL`, the address of any server that serves the bundle's model.

    The URL's path selects the dialect. `.../v2/models/MODEL`: the Open Inference Protocol; the model's metadata tell its input.
    Any other path (default `/predict`): a POST with the image as its body, which returns JSON as Trident and TorchServe do.

    Raises:
        TargetError: the entry has another form, or the server does not return its metadata.
    """
    name, _, url = entry.partition("=")
    parts = urlsplit(url)
    if not name or parts.scheme not in ("http", "https") or not parts.hostname:
        raise TargetError(f"--target {entry!r} is not NAME=URL (mine=http://127.0.0.1:9000/predict)")
    base, manifest = f"{parts.scheme}://{parts.netloc}", bundle.manifest
    port = parts.port or (443 if parts.scheme == "https" else 80)
    content: dict[str, Any] = {
        "name": name,
        "server": "third party",
        "url": base,
        "model": manifest.model,
        "version": manifest.version,
        "tolerance": answer_tolerance(manifest),
        "pids": listening_pids(port) if parts.hostname in _LOCAL else (),
    }
    before, is_protocol, model = parts.path.partition("/v2/models/")
    if not is_protocol:
        path = parts.path.rstrip("/") or "/predict"
        return Lane(**content, dialect="image", path=path + (f"?{parts.query}" if parts.query else ""))
    path = f"{before}/v2/models/{model.removesuffix('/infer').rstrip('/')}"
    metadata = _metadata(f"{base}{path}", entry)
    try:
        (given,), output = metadata["inputs"], metadata["outputs"][0]
        datatype, input_name, output_name = given["datatype"], given["name"], output["name"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TargetError(
            f"--target {entry}: the model must have one input; metadata: {str(metadata)[:200]}"
        ) from error
    if datatype == "UINT8":
        names = {"input_name": input_name, "output_name": output_name}
        return Lane(**content, dialect="tensor", path=path, **names)
    if datatype == "BYTES":
        content |= {"url": f"{base}{before}", "model": path.rpartition("/v2/models/")[2]}
        return Lane(**content, dialect="triton")
    raise TargetError(f"--target {entry}: its input is {datatype}; supported are UINT8 (pixels) and BYTES (an image)")


def _metadata(url: str, entry: str) -> dict[str, Any]:
    try:
        response = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
        response.raise_for_status()
        metadata: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise TargetError(f"--target {entry}: {url} returned no model metadata: {error}") from error
    return metadata
