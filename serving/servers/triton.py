"""Triton as a supervised server: the one of the nvidia-pytriton wheel, or one laid out as in the public image.

Its python models run in stub processes. Triton never restarts a stub that died: every request to it fails, while live,
ready and model-ready stay green. So the supervisor counts stubs.
https://github.com/triton-inference-server/server/issues/8604
"""

import math
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final

from bundle.errors import DeploymentError
from bundle.golden import Fault
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, ServerName
from serving.clients.http_wire import API_KEY_HEADER
from serving.clients.triton import triton_model
from serving.deployment import Deployment
from serving.scratch import remove_scratch, scratch_name
from serving.server_api import call, fetch, metric_samples, metric_sum
from serving.servers.model_config import settings_of_configs
from serving.servers.server import EffectiveSettings, KillTarget, Server, StartCommand
from serving.settings import ServingSettings
from serving.triton_server.control import ADMIN_HEADER, TritonControl
from serving.triton_server.environment import TritonEnvironment, find_triton, prepare_backends
from serving.triton_server.repository import (
    build_repository,
    model_names,
    native_backend,
    remove_models,
    write_default,
)
from serving.triton_server.stubs import expected_stubs, living_stubs

_FOR_CLIENTS: Final = ("inference", "metadata", "model-config", "statistics")
_FOR_SUPERVISOR: Final = ("model-repository", "shared-memory", "trace", "logging")  # a load call may carry code
_POLL_S: Final = 0.05
_SWITCHED_S: Final = 0.3  # a request that arrived before the switch has reached the version's model by then


class TritonServer(Server):
    """tritonserver with explicit model control."""

    name: ClassVar[ServerName] = "triton"
    kill_targets: ClassVar[tuple[KillTarget, ...]] = (
        KillTarget("the image model's stub", "_image/"),
        KillTarget("tritonserver"),
    )
    repair_description: ClassVar[str] = "Trident: model loaded again"

    def __init__(self, settings: ServingSettings, deployment: Deployment, folder: Path) -> None:
        super().__init__(settings, deployment, folder)
        self._environment: TritonEnvironment | None = None
        self._token = secrets.token_urlsafe()
        self._repository = self.folder / "model_repository"
        address = f"{self.settings.host}:{self.settings.ports.triton_grpc}"
        self._control = TritonControl(address, self.settings.start_timeout_s, self._token)

    @property
    def endpoint(self) -> Endpoint:
        """HTTP and gRPC; metrics on a port of their own."""
        host, ports = self.settings.host, self.settings.ports
        return Endpoint(
            server=self.name,
            url=f"http://{host}:{ports.triton}",
            grpc=f"{host}:{ports.triton_grpc}",
            metrics_url=f"http://{host}:{ports.triton_metrics}/metrics",
        )

    @property
    def stop_timeout_s(self) -> float:
        """Triton answers accepted requests before it exits."""
        return self._exit_timeout_s + 5

    @property
    def _exit_timeout_s(self) -> int:
        return max(10, math.ceil(self.settings.request_timeout_s))

    # --- start

    def prepare(self) -> None:
        """Write the model repository, and check that Triton can run here."""
        self._check_device()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._repository.mkdir(parents=True)
        for bundle in self.deployment:
            is_default = self.deployment.is_default(bundle)
            build_repository(bundle, self.settings, self._repository, is_default=is_default)
        if self.settings.triton_home is None:  # the image brings its own
            self._environment = prepare_backends(self.settings, self.folder / "backends")

    def start_command(self) -> StartCommand:
        """tritonserver on the model repository."""
        remove_scratch(self.folder)
        settings, ports, host = self.settings, self.settings.ports, self.settings.host
        if settings.triton_home is None:
            triton = self._environment or find_triton(settings.triton_python)
            server, backends, environment = triton.server, self.folder / "backends", triton.variables
        else:
            server, backends = settings.triton_home, settings.triton_home / "backends"
            environment = dict(os.environ)
        argv = (
            *(str(server / "bin/tritonserver"), f"--model-repository={self._repository}"),
            *(f"--backend-directory={backends}", "--model-control-mode=explicit", "--load-model=*"),
            f"--exit-timeout-secs={self._exit_timeout_s}",
            *(f"--http-address={host}", f"--http-port={ports.triton}", "--http-header-forward-pattern=(?i)x-top-k"),
            *(f"--grpc-address={host}", f"--grpc-port={ports.triton_grpc}"),
            *(f"--metrics-address={host}", f"--metrics-port={ports.triton_metrics}"),
            *("--allow-gpu-metrics=false", "--metrics-config=summary_latencies=true"),
            *("--pinned-memory-pool-byte-size=0", "--disable-auto-complete-config"),
            f"--backend-config=python,shm-region-prefix-name={scratch_name(self.folder)}_",
            *self._restrictions(),
        )
        return StartCommand(argv, {**environment, **self.deployment.environment()}, self.folder)

    def _check_device(self) -> None:
        settings = self.settings
        if settings.triton_home is None and settings.device != "cpu":
            raise DeploymentError(
                f"device = {settings.device}: the Triton of the wheel runs on the CPU only; a GPU needs its image "
                "(compose.gpu.yaml), or start the other servers only"
            )
        if settings.device == "tensorrt" and native_backend(settings) is not None:
            raise DeploymentError(
                "device = tensorrt: Trident does not configure TensorRT in Triton's own backends; use device = cuda, or "
                "start the other servers only"
            )

    def _restrictions(self) -> Iterator[str]:
        """Control of the server needs the supervisor's token; everything but health the API key, if there is one. Triton
        takes one key. Both can be read in the process list of this machine.

        Raises:
            DeploymentError: Triton's command line cannot carry the key.
        """
        yield from _restricted(_FOR_SUPERVISOR, ADMIN_HEADER, self._token)
        key = self.settings.client_key
        if key is None:
            return
        if not re.fullmatch(r"[\w.~+/-]+", key):
            raise DeploymentError(
                "Triton's key may have letters, digits and . _ ~ + / - only; choose another first api_key"
            )
        yield from _restricted(_FOR_CLIENTS, API_KEY_HEADER, key)

    def is_up(self) -> bool:
        """`/v2/health/ready`: every model is loaded."""
        return fetch(f"{self.endpoint.url}/v2/health/ready")[0] == 200

    # --- versions

    def load(self, bundle: Bundle) -> None:
        """Write its models into the repository, and load them."""
        build_repository(bundle, self.settings, self._repository, is_default=False)
        for name in model_names(bundle):
            self._control.load(name)

    def make_default(self, bundle: Bundle) -> None:
        """Load the model's public name with another version. Triton answers by the old one until the new one is ready."""
        write_default(bundle, self.settings, self._repository)
        self._control.load(bundle.manifest.model)

    def unload(self, bundle: Bundle) -> None:
        """Unload its models. Triton waits until they have answered every request.

        Whatever happens, they are removed from the repository: a restart loads all that is there.
        """
        names = model_names(bundle)
        try:
            time.sleep(_SWITCHED_S)
            for name in reversed(names):
                self._control.unload(name)
            deadline = time.monotonic() + self.settings.start_timeout_s
            while loaded := self._loaded(names):
                if time.monotonic() > deadline:
                    raise DeploymentError(f"Triton has not unloaded {', '.join(sorted(loaded))}")
                time.sleep(_POLL_S)
        finally:
            remove_models(names, self._repository)
            shutil.rmtree(self._repository / bundle.manifest.model / str(bundle.manifest.version), ignore_errors=True)

    def _loaded(self, names: Iterable[str]) -> set[str]:
        return {name for name, state in self._control.states().items() if name in names and state != "UNAVAILABLE"}

    # --- supervision

    def probe(self) -> Fault | None:
        """Models with fewer living stubs than instances."""
        short = self._short_of_stubs()
        return Fault("server", f"dead stub of {', '.join(sorted(short))}") if short else None

    def repair(self) -> str | None:
        """Load those models again, while the others continue to answer. Triton loads a model again only if one of its files
        is younger.

        Requests that a dead stub held are never answered, and Triton would wait for them when it stops. If there are any,
        kill Triton: their connections end, and the supervisor starts it again.
        """
        short = self._short_of_stubs()
        if not short:
            return None
        if lost := self._images_lost():
            assert self.pid is not None, "repair needs a started server"
            os.kill(self.pid, signal.SIGKILL)
            return f"ended Triton, for a dead stub held {lost} images"
        for name in sorted(short):
            for file in (self._repository / name).rglob("*"):
                os.utime(file)
            self._control.load(name)
        return f"loaded {', '.join(sorted(short))} again"

    def predictions_served(self, bundle: Bundle) -> float | None:
        """The images that it has classified."""
        model = re.escape(f"{triton_model(bundle.manifest.model, bundle.manifest.version)}_image")
        return metric_sum(self.endpoint.metrics_url, rf'trident_images_total\{{.*\bmodel="{model}".*\}}')

    def _images_lost(self) -> int:
        """The images that were held by stubs which no longer live."""
        assert self.pid is not None, "probe and repair need a started server"
        alive = {str(pid) for pids in living_stubs(self.pid, self._repository).values() for pid in pids}
        held = metric_samples(self.endpoint.metrics_url, r'trident_held_images\{.*\bstub="(\d+)".*\}')
        return sum(int(images) for stub, images in held if stub not in alive)

    def _short_of_stubs(self) -> set[str]:
        assert self.pid is not None, "probe and repair need a started server"
        alive = living_stubs(self.pid, self._repository)
        expected = expected_stubs(self._repository)
        short = {name for name, count in expected.items() if len(alive.get(name, ())) < count}
        return {name for name in short if self._control.states().get(name) == "READY"} if short else set()

    # --- what it runs with

    def effective_settings(self) -> EffectiveSettings:
        """By the configuration of the image model; where the classifier is native, by that of the classifier too."""
        manifest = self.deployment.bundles[-1].manifest
        key = self.settings.client_key
        headers = {} if key is None else {API_KEY_HEADER: key}
        name = triton_model(manifest.model, manifest.version)
        parts = ("classifier" if native_backend(self.settings) else "image", "image")
        urls = [f"{self.endpoint.url}/v2/models/{name}_{part}/config" for part in parts]
        return settings_of_configs(*(call("GET", url, headers=headers) for url in urls))

    def cleanup(self) -> None:
        """Remove shared memory."""
        remove_scratch(self.folder)


def _restricted(protocols: Iterable[str], header: str, value: str) -> Iterator[str]:
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        yield f"{flag}={','.join(protocols)}:{header}={value}"


SERVER: Final = TritonServer
