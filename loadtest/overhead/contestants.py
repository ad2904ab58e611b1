"""The contestants: how each server is started on a port, with which settings, and its lane."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

from bundle.store import Bundle
from loadtest.errors import LoadtestError
from loadtest.lanes.lane import Lane
from loadtest.lanes.lineup import answer_tolerance
from loadtest.overhead.model import BUNDLE, DELAY_MS_VARIABLE, MAX_BATCH_SIZE_VARIABLE, WORKERS_VARIABLE

TRIDENT: Final = "trident"
PLAIN_FASTAPI: Final = "plain FastAPI"
MOSEC: Final = "mosec"
LITSERVE: Final = "LitServe"
BENTOML: Final = "BentoML"

BATCH_SIZES: Final = (1, 8, 16, 32)
# How long a request may wait for a batch: each server's shortest time, and one that suits it. 1 ms is mosec's minimum, 10 ms its
# default; 0 is LitServe's default. BentoML has no such setting; it learns the time (see `bentoml_peer`).
DELAYS_MS: Final = {TRIDENT: (0, 1), MOSEC: (1, 10), LITSERVE: (1, 0)}


@dataclass(frozen=True)
class ContestantSettings:
    """The settings with which a server takes part. `delay_ms`: None if the server has no such setting, or makes no batches."""

    max_batch_size: int = 32
    delay_ms: int | None = None
    workers: int = 1

    @property
    def label(self) -> str:
        """The name in tables: `batch 16, 1 ms`."""
        return f"batch {self.max_batch_size}" + (f", {self.delay_ms} ms" if self.delay_ms is not None else "")


@dataclass(frozen=True)
class Contestant:
    """A server with one choice of settings.

    Args:
        command: the command for a port.
        lane: the lane without its address.
        environment: additional environment variables for a port.
        label: its settings in tables.
        adapts: it adapts to the load, so it needs a process of its own for every concurrency.
    """

    name: str
    command: Callable[[int], list[str]]
    lane: Lane
    environment: Callable[[int], dict[str, str]] = field(default=lambda _: {})
    label: str = "-"
    adapts: bool = False


def contestants(
    bundle: Bundle,
    peers: Path | None,
    names: Iterable[str] = (),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    workers: int = 1,
    first_delay_only: bool = False,
) -> dict[str, list[Contestant]]:
    """Every server with each of its settings, by name.

    Args:
        peers: a Python with the packages of mosec, LitServe and BentoML; None: without these three.
        names: only these servers; empty: all.

    Raises:
        LoadtestError: there is no server of one of the names.
    """
    known = [TRIDENT, PLAIN_FASTAPI, *([MOSEC, LITSERVE, BENTOML] if peers is not None else [])]
    chosen = list(names) or known
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise LoadtestError(f"no server {', '.join(unknown)}; known: {', '.join(known)}")

    def variants(name: str) -> list[Contestant]:
        if name == PLAIN_FASTAPI:
            return [_plain_fastapi(bundle)]
        every = settings_of(name, batch_sizes, workers, first_delay_only)
        if name == TRIDENT:
            return [_trident(bundle, one) for one in every]
        assert peers is not None
        return [_peer(name, bundle, peers, one) for one in every]

    return {name: variants(name) for name in known if name in chosen}


def settings_of(
    name: str, batch_sizes: Sequence[int], workers: int = 1, first_delay_only: bool = False
) -> list[ContestantSettings]:
    """Each batch size with each delay of a server. A batch of one image does not wait."""
    delays: Sequence[int | None] = DELAYS_MS.get(name, (None,))
    some = delays[:1] if first_delay_only else delays
    return [ContestantSettings(1, None, workers)] * (1 in batch_sizes) + [
        ContestantSettings(size, delay, workers) for size, delay in product(batch_sizes, some) if size > 1
    ]


def _trident(bundle: Bundle, settings: ContestantSettings) -> Contestant:
    def environment(port: int) -> dict[str, str]:
        return {
            "TRIDENT_MODELS": json.dumps([str(bundle.path)]),
            "TRIDENT_MAX_BATCH_SIZE": str(settings.max_batch_size),
            "TRIDENT_QUEUE_DELAY_MS": str(settings.delay_ms or 0),
            "TRIDENT_WORKERS": str(settings.workers),
            "TRIDENT_THREADS": "1",
            "TRIDENT_PORTS__FASTAPI": str(port),
        }

    lane = _lane(TRIDENT, bundle).model_copy(update={"dialect": "fastapi", "path": ""})
    command = [sys.executable, "-m", "serving.fastapi_server"]
    return Contestant(TRIDENT, lambda _: command, lane, environment, settings.label)


def _plain_fastapi(bundle: Bundle) -> Contestant:
    command = [sys.executable, "-m", f"{__package__}.plain_fastapi", str(bundle.path)]
    return Contestant(PLAIN_FASTAPI, lambda port: [*command, str(port)], _lane(PLAIN_FASTAPI, bundle))


def _peer(name: str, bundle: Bundle, peers: Path, settings: ContestantSettings) -> Contestant:
    python, folder = str(peers), __package__
    environment = {
        BUNDLE: str(bundle.path),
        MAX_BATCH_SIZE_VARIABLE: str(settings.max_batch_size),
        DELAY_MS_VARIABLE: str(1 if settings.delay_ms is None else settings.delay_ms),
        WORKERS_VARIABLE: str(settings.workers),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = {
        MOSEC: [python, "-m", f"{folder}.mosec_peer", "--port"],
        LITSERVE: [python, "-m", f"{folder}.litserve_peer", str(bundle.path)],
        BENTOML: [
            *(python, "-m", "bentoml", "serve", f"{folder}.bentoml_peer:Classifier"),
            *("--host", "127.0.0.1", "--port"),
        ],
    }[name]
    return Contestant(
        name,
        lambda port: [*command, str(port)],
        _lane(name, bundle),
        lambda _: environment,
        settings.label,
        adapts=name == BENTOML and settings.max_batch_size > 1,
    )


def _lane(name: str, bundle: Bundle) -> Lane:
    """The image is the body of a POST to /predict."""
    return Lane(
        name=name,
        server=name,
        url="",
        dialect="image",
        path="/predict",
        model=bundle.manifest.model,
        version=bundle.manifest.version,
        tolerance=answer_tolerance(bundle.manifest),
    )
