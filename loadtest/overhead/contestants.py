"""Who takes part: how each server is started on a port, and how it is asked."""

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.store import Bundle
from loadtest.overhead.closed_loop import post
from loadtest.overhead.model import MAX_BATCH_SIZE

TRIDENT: Final = "trident"


@dataclass(frozen=True)
class Contestant:
    """A server. `command` and `environment` are for one port; `request` is a prepared one for an image."""

    name: str
    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]]
    request: Callable[[int, bytes], bytes]


def contestants(bundle: Bundle, peers: Path | None) -> list[Contestant]:
    """Ours and plain FastAPI; with `peers`, a Python that has their packages, also the dedicated servers."""
    path = str(bundle.path)

    def ours(port: int) -> dict[str, str]:
        return {
            "TRIDENT_MODELS": json.dumps([path]),
            "TRIDENT_MAX_BATCH_SIZE": str(MAX_BATCH_SIZE),
            "TRIDENT_PORTS__FASTAPI": str(port),
        }

    def nothing(_: int) -> dict[str, str]:
        return {}

    def the_bundle(_: int) -> dict[str, str]:
        return {"BUNDLE": path, "BENTOML_DO_NOT_TRACK": "True"}

    def module(python: str, name: str, *arguments: str) -> Callable[[int], list[str]]:
        return lambda port: [python, "-m", name, *arguments, str(port)]

    here = f"{__package__}."
    found = [
        Contestant(TRIDENT, lambda _: [sys.executable, "-m", "serving.fastapi_server"], ours, _raw),
        Contestant("plain FastAPI", module(sys.executable, f"{here}plain_fastapi", path), nothing, _raw),
    ]
    if peers is not None:
        python = str(peers)
        bentoml = (f"{here}bentoml_peer:Classifier", "--host", "127.0.0.1", "--port")
        found += [
            Contestant("mosec", module(python, f"{here}mosec_peer", "--port"), the_bundle, _raw),
            Contestant(
                "LitServe", module(python, f"{here}litserve_peer", path), nothing, _json("image_data", as_list=False)
            ),
            Contestant(
                "BentoML", module(python, "bentoml", "serve", *bentoml), the_bundle, _json("images", as_list=True)
            ),
        ]
    return found


def _raw(port: int, image: bytes) -> bytes:
    return post(port, "/predict", "application/octet-stream", image)


def _json(key: str, *, as_list: bool) -> Callable[[int, bytes], bytes]:
    def request(port: int, image: bytes) -> bytes:
        encoded = base64.b64encode(image).decode()
        body = json.dumps({key: [encoded] if as_list else encoded}).encode()
        return post(port, "/predict", "application/json", body)

    return request
