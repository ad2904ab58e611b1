"""Serve the models of the settings over HTTP: `python -m serving.fastapi_server`.

Configured by environment and trident.toml. SIGTERM: answer what was accepted, then stop. SIGHUP, with several workers:
replace them one by one, the new one ready before the old one goes.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn

from bundle.errors import TridentError
from bundle.store import Bundle, find_bundle
from serving.fastapi_server.metrics import MULTIPROCESS
from serving.fastapi_server.models.fleet import FOLDER, JOURNAL, SHARED, prepare, ready_workers
from serving.fastapi_server.protocol import ServiceProtocol
from serving.fastapi_server.workers import Workers
from serving.processes import die_with_parent
from serving.settings import load_settings

APPLICATION: Final = "serving.fastapi_server.__main__:application"
_PARENT: Final = "_TRIDENT_PARENT"
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger("trident")


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        settings = load_settings().of("fastapi")
        # Found here, a fault is one line and not a traceback; and workers that start later serve the same versions.
        bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    log.info("settings: %s", settings.model_dump_json())
    # Workers that start later read the environment, too: they shall serve the same, also after trident.toml was changed.
    served = settings.model_copy(update={"models": tuple(str(bundle.path) for bundle in bundles)})
    environment = served.child_environment()
    os.environ.clear()
    os.environ.update(environment)
    options: dict[str, Any] = {
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
    if settings.workers == 1:
        uvicorn.run(APPLICATION, workers=1, **options)  # not what WEB_CONCURRENCY says
        return
    with tempfile.TemporaryDirectory(prefix=SHARED) as shared:
        _share(Path(shared), dict(zip(served.models, bundles, strict=True)))
        config = uvicorn.Config(APPLICATION, workers=settings.workers, **options)
        Workers(config, settings.start_timeout_s, lambda: bool(ready_workers(Path(shared, JOURNAL)))).run()


def application():  # type: ignore[no-untyped-def]
    """The factory that each worker process calls."""
    from serving.fastapi_server.app import create_app

    if (
        FOLDER in os.environ
    ):  # one of several workers: not to be left behind, holding the port, when the parent is killed
        die_with_parent(signal.SIGTERM)
        if os.getppid() != int(os.environ[_PARENT]):  # it was killed before that
            sys.exit(1)
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    return create_app(load_settings())


def _share(folder: Path, bundles: Mapping[str, Bundle]) -> None:
    """Tell the workers, by environment, who started them, where their metrics meet and where they agree on models."""
    metrics, journal = folder / "metrics", folder / JOURNAL
    metrics.mkdir()
    prepare(journal, bundles)
    os.environ.update({MULTIPROCESS: str(metrics), FOLDER: str(journal), _PARENT: str(os.getpid())})


if __name__ == "__main__":
    main()
