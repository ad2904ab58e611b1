"""The models of one process: loaded side by side, found by name and version, replaced under load without losing a
request.

All methods belong to the event loop; what blocks (reading, loading, warming up) runs in a thread.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bundle.errors import UnavailableError, UnknownModelError
from bundle.preprocess import Pixels, preprocess
from bundle.store import Bundle, find_bundle, list_bundles
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.models.batcher import Batcher, Job
from serving.runtimes import Runtime, ready_runtime
from serving.settings import ServerSettings, available_cores

MAX_DECODERS: Final = 8


@dataclass(frozen=True)
class HostedModel:
    """One version of one model, ready to answer."""

    bundle: Bundle
    runtime: Runtime
    batcher: Batcher

    @classmethod
    async def load(cls, bundle: Bundle, settings: ServerSettings, metrics: Metrics) -> "HostedModel":
        """Load, warm up, and check against the golden answers.

        Raises:
            BundleError, DeploymentError: it cannot be served.
        """
        runtime = await asyncio.to_thread(ready_runtime, bundle, settings)
        spec, max_image_pixels, name = bundle.manifest.input, settings.max_image_pixels, bundle.manifest.model

        def decode(data: bytes) -> Pixels:
            return preprocess(data, spec, max_image_pixels)

        def on_batch(jobs: Sequence[Job]) -> None:
            metrics.batch_done(name, jobs)

        batcher = Batcher(
            decode,
            runtime.infer,
            max_batch_size=settings.max_batch_size,
            queue_delay_s=settings.queue_delay_ms / 1000,
            queue_size=_share_of_queue(settings),
            decoders=max(0, min(MAX_DECODERS, available_cores() // settings.workers - 1)),
            name=bundle.name,
            on_batch=on_batch,
        )
        return cls(bundle, runtime, batcher)


def _share_of_queue(settings: ServerSettings) -> int:
    """This process's share; but a batch has room in it."""
    share = max(settings.max_batch_size, math.ceil(settings.queue_size / settings.workers))
    return min(settings.queue_size, share)


class Hosting:
    """What is loaded. A model's default version is the one that was loaded last without being told otherwise."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, dict[int, HostedModel]] = {}
        self._default_versions: dict[str, int] = {}
        self._default_model: str | None = None
        self._changing = asyncio.Lock()
        self._started = False
        self._draining = False

    @property
    def ready(self) -> bool:
        """The models of the settings are loaded, warmed up, have given golden answers; and the process is not
        stopping.
        """
        return self._started and not self._draining

    # --- the way of a request

    def find(self, model: str | None = None, version: int | None = None) -> HostedModel:
        """The model to ask: the default one, or `model`; its default version, or `version`.

        Raises:
            UnavailableError: the models are still being loaded.
            UnknownModelError: no such model or version.
        """
        if not self._started:
            raise UnavailableError("the models are not ready", retry_after_s=1)
        name = model or self._default_model or ""
        wanted = version if version is not None else self._default_versions.get(name)
        hosted = self._models.get(name, {}).get(wanted) if wanted is not None else None
        if hosted is None:
            asked = f"{name or 'model'}:{version}" if version is not None else name or "model"
            raise UnknownModelError(f"no {asked}; there are: {', '.join(self.names()) or 'none'}")
        return hosted

    def names(self) -> list[str]:
        """`model:version` of everything that is loaded."""
        return [hosted.bundle.name for hosted in self.all()]

    def all(self) -> Iterable[HostedModel]:
        """Everything that is loaded, by name and version."""
        return [self._models[name][version] for name in sorted(self._models) for version in sorted(self._models[name])]

    def versions(self, model: str) -> list[int]:
        """The loaded versions of a model."""
        return sorted(self._models.get(model, {}))

    def default_version(self, model: str) -> int | None:
        """The version that answers when none is asked for."""
        return self._default_versions.get(model)

    def turns(self) -> dict[str, int]:
        """By `model:version`, for the watchdog: `Batcher.turn`. May be called in any thread."""
        return {hosted.bundle.name: hosted.batcher.turn for hosted in self.all()}

    def queue_depths(self) -> dict[str, int]:
        """By model: images that wait or are computed."""
        return {
            name: sum(hosted.batcher.depth for hosted in versions.values()) for name, versions in self._models.items()
        }

    # --- the life of the process

    async def start(self, without: Mapping[str, str] | None = None) -> None:
        """Load the models that the settings name.

        Args:
            without: references that are left out, and the names of their models.

        Raises:
            BundleError, DeploymentError: one cannot be served.
        """
        for reference in self._settings.models or (None,):
            if reference is not None and without and reference in without:
                self._default_model = self._default_model or without[reference]
                continue
            bundle = await asyncio.to_thread(find_bundle, reference, self._settings.bundles)
            await self._load(bundle, make_default=True)
            self._default_model = self._default_model or bundle.manifest.model
        self._started = True

    async def load(self, model: str, version: int | None = None, *, make_default: bool = True) -> HostedModel:
        """Load a version (by default the highest there is) beside what is loaded; then let it be the one that answers.
        What is loaded already, from the same files, is not loaded again.

        Raises:
            UnknownModelError: there is no such bundle.
            BundleError, DeploymentError: it cannot be served; everything stays as it was.
        """
        async with self._changing:
            wanted = await self.find_version(model, version)
            bundle = await asyncio.to_thread(find_bundle, f"{model}:{wanted}", self._settings.bundles)
            loaded = self._models.get(model, {}).get(wanted)
            if loaded is not None and loaded.bundle.manifest == bundle.manifest:
                if make_default:
                    self._default_versions[model] = wanted
                return loaded
            return await self._load(bundle, make_default=make_default)

    async def find_version(self, model: str, version: int | None) -> int:
        """`version`, or the highest there is among the bundles.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        bundles = await asyncio.to_thread(list_bundles, self._settings.bundles)
        there = [number for name, number in bundles if name == model]
        wanted = version if version is not None else max(there, default=0)
        if wanted not in there:
            raise UnknownModelError(f"no bundle {model}{f':{version}' if version is not None else ''}")
        return wanted

    async def unload(self, model: str, version: int | None = None) -> None:
        """Let a version (by default all) of a model answer what it has taken, then drop it.

        Raises:
            UnknownModelError: it is not loaded.
        """
        async with self._changing:
            loaded = self._models.get(model, {})
            wanted = self.versions(model) if version is None else [version]
            if not loaded or any(number not in loaded for number in wanted):
                raise UnknownModelError(f"no {model}{f':{version}' if version is not None else ''} is loaded")
            dropped = [loaded.pop(number) for number in wanted]
            if not loaded:
                del self._models[model]
                del self._default_versions[model]
            elif self._default_versions[model] in wanted:
                self._default_versions[model] = max(loaded)
            for hosted in dropped:
                self._tell(hosted, loaded=False)
                await hosted.batcher.close()

    async def close(self) -> None:
        """Answer what was taken, and drop everything."""
        self._draining = True
        for hosted in self.all():
            await hosted.batcher.close()

    def drain(self) -> None:
        """Say `not ready`, so that nobody sends anything new; what comes all the same is still answered."""
        self._draining = True

    async def _load(self, bundle: Bundle, *, make_default: bool) -> HostedModel:
        manifest = bundle.manifest
        versions = self._models.setdefault(manifest.model, {})
        replaced = versions.get(manifest.version)
        try:
            hosted = await HostedModel.load(bundle, self._settings, self._metrics)
        except BaseException:
            if not versions:
                del self._models[manifest.model]
            raise
        versions[manifest.version] = hosted  # from here on, new requests go to it
        if make_default or manifest.model not in self._default_versions:
            self._default_versions[manifest.model] = manifest.version
        self._tell(hosted, loaded=True)
        if replaced is not None:
            await replaced.batcher.close()
        return hosted

    def _tell(self, hosted: HostedModel, *, loaded: bool) -> None:
        manifest, settings = hosted.bundle.manifest, self._settings
        of_model = (manifest.model, manifest.version, settings.runtime, settings.precision, settings.device)
        self._metrics.set_model(*of_model, loaded=loaded)
