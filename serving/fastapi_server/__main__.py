"""Serve the models of the settings over HTTP: `python -m serving.fastapi_server`.

Configured by environment and trident.toml. SIGTERM: answer what was accepted, then stop. SIGHUP, with several workers:
replace them one by one, the new one ready before the old one goes.
"""

import json
import logging
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvicorn

from serving.bundle import find_bundle
from serving.errors import TridentError
from serving.fastapi_server.fleet import FOLDER
from serving.fastapi_server.metrics import MULTIPROCESS
from serving.fastapi_server.protocol import ServiceProtocol
from serving.processes import die_with_parent
from serving.settings import load_settings

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger("trident")


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        settings = load_settings()
        # Found here, a fault is one line and not a traceback; and workers that start later serve the same versions.
        bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    log.info("settings: %s", settings.model_dump_json())
    with ExitStack() as stack:
        os.environ["TRIDENT_MODELS"] = json.dumps([str(bundle.path) for bundle in bundles])
        if settings.workers > 1:
            shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trident-workers-")))
            _share(shared)
        uvicorn.run(
            "serving.fastapi_server.__main__:application",
            factory=True,
            host=settings.host,
            port=settings.ports.fastapi,
            workers=settings.workers,
            loop="uvloop",
            http=ServiceProtocol,
            ws="none",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(settings.request_timeout_s) + 5,
            timeout_worker_healthcheck=int(settings.start_timeout_s),
        )


def application():  # type: ignore[no-untyped-def]
    """The factory that each worker process calls."""
    from serving.fastapi_server.app import create_app

    if (
        FOLDER in os.environ
    ):  # one of several workers: not to be left behind, holding the port, when the parent is killed
        die_with_parent(signal.SIGTERM)
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    return create_app(load_settings())


def _share(folder: Path) -> None:
    """Tell the workers, by environment, where their metrics meet and where they agree on models."""
    for variable, name in ((MULTIPROCESS, "metrics"), (FOLDER, "fleet")):
        (folder / name).mkdir()
        os.environ[variable] = str(folder / name)


if __name__ == "__main__":
    main()
