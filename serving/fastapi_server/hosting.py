"""Loaded models, and the threads in which their blocking work runs.

The seam for batching is `HostedModel.classify`: it takes one encoded picture and gives its probabilities, whatever
happens between.
"""

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle, find_bundle
from serving.errors import DeadlineExceededError, OverloadedError, UnavailableError, UnknownModelError
from serving.postprocess import Probabilities
from serving.preprocess import preprocess
from serving.runtimes import ready_runtime
from serving.settings import ServingSettings


@dataclass(frozen=True)
class Classified:
    """Probabilities (float32 `[classes]`) and where the time went."""

    probabilities: Probabilities
    queue_s: float
    decode_s: float
    inference_s: float


class HostedModel:
    """One bundle, loaded. Its work runs in a thread of its own, never on the event loop."""

    def __init__(self, bundle: Bundle, settings: ServingSettings) -> None:
        self.bundle = bundle
        self._settings = settings
        self._runtime = ready_runtime(bundle, settings)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"infer-{bundle.name}")
        self._waiting = 0

    async def classify(self, data: bytes) -> Classified:
        """Classify one encoded picture.

        Raises:
            ImageError: the picture is at fault.
            OverloadedError: `queue_size` requests wait already.
            DeadlineExceededError: no answer within `request_timeout_s`.
        """
        if self._waiting >= self._settings.queue_size:
            raise OverloadedError(f"{self._waiting} requests wait already", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._classify, data, time.perf_counter()
                )
        except TimeoutError as error:
            raise DeadlineExceededError(f"no answer within {self._settings.request_timeout_s} s") from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Finish what was begun and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _classify(self, data: bytes, queued: float) -> Classified:
        started = time.perf_counter()
        pixels = preprocess(data, self.bundle.manifest.input, self._settings.max_image_pixels)
        decoded = time.perf_counter()
        probabilities = self._runtime.infer(pixels[np.newaxis])[0]
        return Classified(probabilities, started - queued, decoded - started, time.perf_counter() - decoded)


class Hosting:
    """The models of one process, by name and version."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int], HostedModel] = {}
        self._default: str | None = None
        self._ready = False

    @property
    def ready(self) -> bool:
        """Every model is loaded, warmed up, and has reproduced its golden answers."""
        return self._ready

    def load(self, settings: ServingSettings) -> None:
        """Load the models that `settings` name. Blocks.

        Raises:
            BundleError, DeploymentError: one cannot be served.
        """
        for reference in settings.models or (None,):
            bundle = find_bundle(reference, settings.bundles)
            manifest = bundle.manifest
            self._models[manifest.model, manifest.version] = HostedModel(bundle, settings)
            self._default = self._default or manifest.model
        self._ready = True

    def find(self, model: str | None = None, version: int | None = None) -> HostedModel:
        """The model to ask: the default one, or `model`; its highest version, or `version`.

        Raises:
            UnavailableError: the models are still being loaded, or closed.
            UnknownModelError: no such model or version.
        """
        if not self._ready:
            raise UnavailableError("the models are not ready", retry_after_s=1)
        model = model or self._default
        versions = {number: hosted for (name, number), hosted in self._models.items() if name == model}
        chosen = versions.get(version if version is not None else max(versions, default=0))
        if chosen is None:
            known = ", ".join(f"{name}:{number}" for name, number in sorted(self._models))
            raise UnknownModelError(
                f"no model {model}{f':{version}' if version is not None else ''}; there are: {known}"
            )
        return chosen

    def all(self) -> Iterable[HostedModel]:
        """Every loaded model."""
        return self._models.values()

    def close(self) -> None:
        """Answer what is under way, take nothing new."""
        self._ready = False
        for hosted in self._models.values():
            hosted.close()
