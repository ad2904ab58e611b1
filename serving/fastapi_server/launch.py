"""Start the FastAPI service on this machine."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.store import Bundle
from serving.clients.endpoint import Endpoint
from serving.fastapi_server.care import FastapiCare
from serving.fastapi_server.versions import FastapiVersions
from serving.scratch import make_scratch_folder, remove_scratch, scratch_folder
from serving.server_api import fetch
from serving.servers.server import ServerPlan
from serving.settings import ServingSettings


def plan_fastapi(settings: ServingSettings, bundles: Sequence[Bundle], folder: Path) -> ServerPlan:
    """The service gets its settings by environment, with the bundles as paths."""
    settings = settings.of("fastapi")
    served = settings.model_copy(
        update={"models": tuple(str(bundle.path) for bundle in bundles), "bundles": settings.bundles.resolve()}
    )
    url = f"http://{settings.host}:{settings.ports.fastapi}"
    environment = served.child_environment()
    environment |= {"OMP_NUM_THREADS": str(settings.threads), "PYTHONUNBUFFERED": "1"}
    environment["TMPDIR"] = str(scratch_folder(folder))  # uploads that are too large for memory, what workers share
    return ServerPlan(
        endpoint=Endpoint(server="fastapi", url=url, metrics_url=f"{url}/metrics"),
        command=(sys.executable, "-m", "serving.fastapi_server"),
        environment=environment,
        folder=folder.resolve(),
        before_start=lambda: make_scratch_folder(folder),
        cleanup=lambda: remove_scratch(folder),
        workers_ready=lambda: fetch(f"{url}/v2/health/ready")[0] == 200,
        versions=FastapiVersions(url, settings),
        care=lambda _pid: FastapiCare(settings.workers, scratch_folder(folder)),
        stop_timeout_s=settings.request_timeout_s + 10,
    )
