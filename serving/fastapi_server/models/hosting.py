"""The models that one process has loaded: found by name and version, replaced without losing a request.

All methods belong to the event loop. What blocks (reading, loading, warming up) runs in a thread.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bundle.errors import BundleError, UnavailableError, UnknownModelError
from bundle.postprocess import AnswerWriter
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle, list_bundles, read_bundle
from serving.fastapi_server.metrics import Metrics, ModelMetrics
from serving.fastapi_server.models.batcher import Batcher
from serving.fastapi_server.models.desired_state import DesiredBundle, DesiredState
from serving.fastapi_server.models.job import Job
from serving.fastapi_server.models.placement import Placement
from serving.runtimes import Runtime, ready_runtime
from serving.settings import ServerSettings, available_cores

MAX_DECODERS: Final = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostedModel:
    """One version of one model, ready for requests. `digest` is the bundle's."""

    bundle: Bundle
    digest: str
    runtime: Runtime
    batcher: Batcher
    answers: AnswerWriter

    @classmethod
    async def load(cls, desired: DesiredBundle, settings: ServerSettings, metrics: Metrics) -> "HostedModel":
        """Load the model, warm it up, and compare its answers with the golden answers.

        Raises:
            BundleError, DeploymentError: the bundle cannot be served.
        """
        bundle = await asyncio.to_thread(read_bundle, desired.path, check=False)
        if bundle.digest != desired.digest:
            raise BundleError(f"bundle {desired.name} has changed on disk since it was deployed; load it again")
        runtime = await asyncio.to_thread(ready_runtime, bundle, settings)
        spec, max_image_pixels = bundle.manifest.input, settings.max_image_pixels
        model_metrics = metrics.of_model(bundle.manifest.model)

        def decode(data: bytes) -> Pixels:
            return preprocess(data, spec, max_image_pixels)

        decoders = max(0, min(MAX_DECODERS, available_cores() // settings.workers - 1))
        may_run_on_loop = not decoders and not settings.queue_delay_ms and settings.device == "cpu"
        batcher = Batcher(
            decode,
            runtime.infer,
            max_batch_size=settings.max_batch_size,
            queue_delay_s=settings.queue_delay_ms / 1000,
            queue_size=_share_of_queue(settings),
            decoders=decoders,
            name=bundle.name,
            placement=Placement(bundle.name, fixed=None if may_run_on_loop else "model thread"),
            on_batch=partial(_record, model_metrics),
        )
        manifest = bundle.manifest
        answers = AnswerWriter(manifest.model, manifest.version, manifest.labels)
        return cls(bundle, desired.digest, runtime, batcher, answers)


def _share_of_queue(settings: ServerSettings) -> int:
    """This process's share of the queue; large enough for one batch."""
    share = max(settings.max_batch_size, math.ceil(settings.queue_size / settings.workers))
    return min(settings.queue_size, share)


def _record(metrics: ModelMetrics, jobs: Sequence[Job]) -> None:
    """Count the images of one batch that were classified."""
    batch_size = 0
    for job in jobs:
        if job.probabilities is not None:
            batch_size = job.batch_size
            metrics.decode.observe(job.decode_s)
            metrics.queue.observe(job.queue_s)
            metrics.inference.observe(job.inference_s)
    if batch_size:
        metrics.batch_size.observe(batch_size)


class Hosting:
    """The loaded models, the default model, and the default version of each model."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models: dict[tuple[str, int], HostedModel] = {}
        self._default_versions: dict[str, int] = {}
        self._default_model: str | None = None
        self._started = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether the models are loaded, and the process is not stopping."""
        return self._started and not self._draining

    # --- for requests

    def find(self, model: str | None = None, version: int | None = None) -> HostedModel:
        """Find `model` (None: the default model) and its `version` (None: its default version).

        Raises:
            UnavailableError: the models are still being loaded.
            UnknownModelError: that model or version is not loaded.
        """
        if not self._started:
            raise UnavailableError("the models are not ready", retry_after_s=1)
        name = model or self._default_model
        number = version if version is not None or name is None else self._default_versions.get(name)
        if name is not None and number is not None and (hosted := self._models.get((name, number))) is not None:
            return hosted
        wanted = name or "model"
        if version is not None:
            wanted = f"{wanted}:{version}"
        raise UnknownModelError(f"{wanted} is not loaded; loaded: {', '.join(self.names()) or 'none'}")

    def names(self) -> list[str]:
        """`model:version` of everything that is loaded."""
        return [hosted.bundle.name for hosted in self.all()]

    def all(self) -> list[HostedModel]:
        """Everything that is loaded, sorted by name and version."""
        return [hosted for _, hosted in sorted(self._models.items())]

    def versions(self, model: str) -> list[int]:
        """The loaded versions of a model."""
        return sorted(version for name, version in self._models if name == model)

    def turns(self) -> dict[str, int]:
        """`Batcher.turn` of each `model:version`, for the watchdog. May be called in any thread."""
        return {hosted.bundle.name: hosted.batcher.turn for hosted in self.all()}

    def queue_depths(self) -> dict[str, int]:
        """The images of each model that wait or are being classified."""
        depths: dict[str, int] = {}
        for (model, _), hosted in self._models.items():
            depths[model] = depths.get(model, 0) + hosted.batcher.depth
        return depths

    def on_event_loop(self) -> set[str]:
        """The models of which at least one version runs its batches on the event loop."""
        return {model for (model, _), hosted in self._models.items() if hosted.batcher.placement.place == "event loop"}

    # --- changes

    async def reconcile(self, desired: DesiredState) -> dict[str, Exception]:
        """Load what is missing, then switch the defaults, then unload what is not desired.

        Returns the bundles that could not be loaded, by name, with the reason. The others are served.
        """
        wanted = {bundle.name: bundle for bundle in desired.bundles}
        if desired.pending is not None:
            wanted[desired.pending.name] = desired.pending
        errors: dict[str, Exception] = {}
        for name, bundle in wanted.items():
            try:
                await self._load(bundle)
            except Exception as error:
                log.error("could not load %s: %s", name, error)
                errors[name] = error
        self._default_model = desired.default_model
        self._default_versions = dict(desired.default_versions)
        for hosted in self.all():
            if hosted.bundle.name not in wanted:
                await self._unload(hosted)
        self._started = True
        return errors

    def bundle_path(self, model: str, version: int | None) -> Path:
        """The folder of a version (None: the highest) among the bundles on disk. Blocks.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        available = [number for name, number in list_bundles(self._settings.bundles) if name == model]
        found = version if version is not None else max(available, default=None)
        if found is None or found not in available:
            raise UnknownModelError(f"no bundle {model}{f':{version}' if version is not None else ''}")
        return self._settings.bundles / model / str(found)

    def drain(self) -> None:
        """Report not ready, so that no new requests are sent here. Requests that still arrive are answered."""
        self._draining = True

    async def close(self) -> None:
        """Answer the accepted requests, and unload everything."""
        self._draining = True
        for hosted in self.all():
            await hosted.batcher.close()

    async def _load(self, bundle: DesiredBundle) -> None:
        key = (bundle.model, bundle.version)
        replaced = self._models.get(key)
        if replaced is not None and replaced.digest == bundle.digest:
            return
        hosted = await HostedModel.load(bundle, self._settings, self._metrics)
        self._models[key] = hosted  # from here on, it gets the new requests
        self._show(hosted, loaded=True)
        if replaced is not None:
            await replaced.batcher.close()

    async def _unload(self, hosted: HostedModel) -> None:
        """Take no new requests, answer the accepted ones, then drop the model."""
        manifest = hosted.bundle.manifest
        del self._models[manifest.model, manifest.version]
        self._show(hosted, loaded=False)
        await hosted.batcher.close()

    def _show(self, hosted: HostedModel, *, loaded: bool) -> None:
        """Set the metric `trident_model_info`."""
        manifest, settings = hosted.bundle.manifest, self._settings
        labels = (manifest.model, manifest.version, settings.runtime, settings.precision, settings.device)
        self._metrics.set_model(*labels, loaded=loaded)
