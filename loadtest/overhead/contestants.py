"""The contestants: how each server is started on a port, and its lane."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bundle.store import Bundle
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import answer_tolerance
from loadtest.overhead.model import BUNDLE, MAX_BATCH_SIZE_VARIABLE

TRIDENT: Final = "trident"


@dataclass(frozen=True)
class ContestantSettings:
    """The settings with which a server takes part. Plain FastAPI has no batches."""

    max_batch_size: int = 32

    def label(self) -> str:
        """The name in tables."""
        return f"batch {self.max_batch_size}"


@dataclass(frozen=True)
class Contestant:
    """A server with its settings.

    Args:
        command: the command for a port.
        environment: additional environment variables for a port.
        lane: the lane without its address.
    """

    name: str
    command: Callable[[int], list[str]]
    lane: Lane
    environment: Callable[[int], dict[str, str]] = field(default=lambda _: {})


def contestants(
    bundle: Bundle,
    peers: Path | None,
    names: Iterable[str] = (),
    settings: Iterable[ContestantSettings] = (ContestantSettings(),),
) -> list[Contestant]:
    """Every server with each of the settings.

    Args:
        peers: a Python with the packages of mosec, LitServe and BentoML; None: without these three.
        names: only these servers; empty: all.
    """
    variants = list(settings)
    found = []
    for one in variants:
        suffix = f" {one.label()}" if len(variants) > 1 else ""
        servers = [_trident(bundle, one), _plain_fastapi(bundle), *(_peers(bundle, peers, one) if peers else [])]
        known = set(names) or {server.name for server in servers}
        found += [
            Contestant(f"{server.name}{suffix}", server.command, server.lane, server.environment)
            for server in servers
            if server.name in known
        ]
    return found


def _trident(bundle: Bundle, settings: ContestantSettings) -> Contestant:
    def environment(port: int) -> dict[str, str]:
        return {
            "TRIDENT_MODELS": json.dumps([str(bundle.path)]),
            "TRIDENT_MAX_BATCH_SIZE": str(settings.max_batch_size),
            "TRIDENT_PORTS__FASTAPI": str(port),
        }

    lane = _lane(TRIDENT, bundle, dialect="fastapi")
    return Contestant(TRIDENT, lambda _: [sys.executable, "-m", "serving.fastapi_server"], lane, environment)


def _plain_fastapi(bundle: Bundle) -> Contestant:
    command = [sys.executable, "-m", f"{__package__}.plain_fastapi", str(bundle.path)]
    lane = _lane("plain FastAPI", bundle, dialect="image", path="/predict")
    return Contestant(lane.name, lambda port: [*command, str(port)], lane)


def _peers(bundle: Bundle, peers: Path, settings: ContestantSettings) -> list[Contestant]:
    python, folder = str(peers), __package__
    batch = {MAX_BATCH_SIZE_VARIABLE: str(settings.max_batch_size)}
    environment = {BUNDLE: str(bundle.path), "BENTOML_DO_NOT_TRACK": "True", **batch}
    commands = {
        "mosec": [python, "-m", f"{folder}.mosec_peer", "--port"],
        "LitServe": [python, "-m", f"{folder}.litserve_peer", str(bundle.path)],
        "BentoML": [
            *(python, "-m", "bentoml", "serve", f"{folder}.bentoml_peer:Classifier"),
            *("--host", "127.0.0.1", "--port"),
        ],
    }
    dialects = {
        "mosec": {"dialect": "image"},
        "LitServe": {"dialect": "json", "input_name": "image_data"},
        "BentoML": {"dialect": "json-batch", "input_name": "images"},
    }
    return [
        Contestant(
            name,
            lambda port, command=command: [*command, str(port)],  # type: ignore[misc]
            _lane(name, bundle, path="/predict", **dialects[name]),
            lambda _: environment,
        )
        for name, command in commands.items()
    ]


def _lane(name: str, bundle: Bundle, **more: Any) -> Lane:
    return Lane(
        name=name,
        server=name,
        url="",
        model=bundle.manifest.model,
        version=bundle.manifest.version,
        tolerance=answer_tolerance(bundle.manifest),
        **more,
    )
