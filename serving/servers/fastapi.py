"""The FastAPI service as a supervised server. uvicorn replaces dead workers by itself, and drains when it is stopped."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from bundle.golden import Fault
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, ServerName
from serving.clients.http_wire import API_KEY_HEADER
from serving.fastapi_server.models.desired_state import SHARED_PREFIX, STATE_FOLDER, ready_workers
from serving.scratch import make_scratch_folder, remove_scratch, scratch_folder
from serving.server_api import call, fetch
from serving.servers.model_config import settings_of_configs
from serving.servers.server import EffectiveSettings, KillTarget, Server, StartCommand

_LOAD_TIMEOUT_S: Final = 180.0  # a load ends when every worker process has loaded the version


class FastapiServer(Server):
    """`python -m serving.fastapi_server`."""

    name: ClassVar[ServerName] = "fastapi"
    kill_targets: ClassVar[tuple[KillTarget, ...]] = (
        KillTarget("a uvicorn worker", "spawn_main"),
        KillTarget("the service (uvicorn's parent)"),
    )

    @property
    def endpoint(self) -> Endpoint:
        """HTTP only."""
        url = f"http://{self.settings.host}:{self.settings.ports.fastapi}"
        return Endpoint(server=self.name, url=url, metrics_url=f"{url}/metrics")

    @property
    def stop_timeout_s(self) -> float:
        """It answers accepted requests first."""
        return self.settings.request_timeout_s + 10

    def prepare(self) -> None:
        """The service gets all its settings by environment."""

    def start_command(self) -> StartCommand:
        """The service, with the bundles by their paths."""
        make_scratch_folder(self.folder)
        environment = self.deployment.settings_for_children(self.settings).child_environment()
        environment |= self.deployment.environment()
        environment |= {"OMP_NUM_THREADS": str(self.settings.threads), "PYTHONUNBUFFERED": "1"}
        # For uploads that are too large for memory, and for what the workers share.
        environment["TMPDIR"] = str(scratch_folder(self.folder))
        return StartCommand((sys.executable, "-m", "serving.fastapi_server"), environment, self.folder)

    def is_up(self) -> bool:
        """`/v2/health/ready`: every model is loaded, warmed up, and has reproduced its golden answers."""
        return fetch(f"{self.endpoint.url}/v2/health/ready")[0] == 200

    def load(self, bundle: Bundle) -> None:
        """Every worker process loads it, or none does."""
        self._repository(bundle, "load", {"version": bundle.manifest.version, "make_default": False})

    def make_default(self, bundle: Bundle) -> None:
        """It is loaded already: this only switches."""
        self._repository(bundle, "load", {"version": bundle.manifest.version, "make_default": True})

    def unload(self, bundle: Bundle) -> None:
        """The service drains the version itself."""
        self._repository(bundle, "unload", {"version": bundle.manifest.version})

    def probe(self) -> Fault | None:
        """Missing worker processes, and those that are not ready yet."""
        return missing_workers(self.settings.workers, scratch_folder(self.folder))

    def effective_settings(self) -> EffectiveSettings:
        """By its model configuration, which has Triton's form."""
        config = self._model_config()
        return settings_of_configs(config, config)

    def observations(self) -> Mapping[str, str]:
        """The thread in which one of the workers runs its batches."""
        return {"batches run on": self._model_config()["parameters"]["batches_run_on"]["string_value"]}

    def cleanup(self) -> None:
        """Remove the scratch folder."""
        remove_scratch(self.folder)

    def _model_config(self) -> dict[str, Any]:
        manifest = self.deployment.bundles[-1].manifest
        path = f"/v2/models/{manifest.model}_classifier/versions/{manifest.version}/config"
        config: dict[str, Any] = call("GET", f"{self.endpoint.url}{path}", headers=self._headers())
        return config

    def _repository(self, bundle: Bundle, action: str, parameters: dict[str, object]) -> None:
        url = f"{self.endpoint.url}/v2/repository/models/{bundle.manifest.model}/{action}"
        call("POST", url, {"parameters": parameters}, self._headers(), _LOAD_TIMEOUT_S)

    def _headers(self) -> dict[str, str]:
        key = self.settings.client_key
        return {} if key is None else {API_KEY_HEADER: key}


def missing_workers(workers: int, scratch: Path) -> Fault | None:
    """The fault of a service that shares its state in the folder `scratch`, if it lacks ready worker processes."""
    if workers == 1:  # the one worker is the service's only process
        return None
    ready = sum(len(ready_workers(path)) for path in scratch.glob(f"{SHARED_PREFIX}*/{STATE_FOLDER}"))
    return Fault("server", f"{ready} of {workers} workers") if ready < workers else None


SERVER: Final = FastapiServer
