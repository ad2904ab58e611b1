"""Serve the models of the settings over HTTP: `python -m serving.fastapi_server`.

The settings come from the environment and trident.toml. SIGTERM: answer the accepted requests, then stop. SIGHUP, with
several workers: replace them one by one; a worker stops after its replacement is ready.
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import uvicorn

from bundle.errors import TridentError
from serving.deployment import Deployment
from serving.fastapi_server.metrics import MULTIPROCESS
from serving.fastapi_server.models.agreement import STATE_VARIABLE
from serving.fastapi_server.models.desired_state import (
    SHARED_PREFIX,
    STATE_FOLDER,
    DesiredState,
    StateFolder,
    ready_workers,
)
from serving.fastapi_server.protocol import ServiceProtocol
from serving.fastapi_server.workers import Workers
from serving.processes import die_with_parent
from serving.settings import ServerSettings, load_settings

APPLICATION: Final = "serving.fastapi_server.__main__:application"
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PARENT: Final = "_TRIDENT_PARENT"  # environment variable: the process id of the workers' parent

log = logging.getLogger("trident")


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        settings = load_settings().of("fastapi")
        # Read here, before any worker starts, a damaged bundle is an error message and not a traceback.
        deployment = Deployment.of(settings)
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    log.info("settings: %s", settings.model_dump_json())
    # Workers read their settings from this environment: all serve the same, even if trident.toml changes meanwhile.
    environment = deployment.settings_for_children(settings).child_environment()
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(deployment.environment())
    if settings.workers == 1:
        uvicorn.run(APPLICATION, workers=1, **_uvicorn_arguments(settings))  # overrides WEB_CONCURRENCY
        return
    with tempfile.TemporaryDirectory(prefix=SHARED_PREFIX) as folder:
        state = _share(Path(folder), deployment)
        config = uvicorn.Config(APPLICATION, workers=settings.workers, **_uvicorn_arguments(settings))
        Workers(config, settings.start_timeout_s, lambda: bool(ready_workers(state))).run()


def application():  # type: ignore[no-untyped-def]
    """The factory that uvicorn calls in each worker process."""
    from serving.fastapi_server.app import create_app

    if STATE_VARIABLE in os.environ:  # one of several workers
        die_with_parent(signal.SIGTERM)  # if the parent is killed, the workers must not keep the port
        if os.getppid() != int(os.environ[_PARENT]):  # it was killed before that
            sys.exit(1)
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    return create_app(load_settings())


def _uvicorn_arguments(settings: ServerSettings) -> dict[str, Any]:
    return {
        "factory": True,
        "host": settings.host,
        "port": settings.ports.fastapi,
        "loop": "uvloop",
        "http": ServiceProtocol,
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_config": None,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(settings.request_timeout_s) + 5,
    }


def _share(folder: Path, deployment: Deployment) -> Path:
    """Create what the workers share: the state of their models, and their metrics. Returns the state's folder."""
    metrics, state = folder / "metrics", folder / STATE_FOLDER
    metrics.mkdir()
    state.mkdir()
    StateFolder(state).write_desired(DesiredState.of(deployment))
    os.environ.update({MULTIPROCESS: str(metrics), STATE_VARIABLE: str(state), _PARENT: str(os.getpid())})
    return state


if __name__ == "__main__":
    main()
