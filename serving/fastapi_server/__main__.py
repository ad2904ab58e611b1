"""Serve the models of the settings over HTTP: `python -m serving.fastapi_server`, configured by environment and
trident.toml.
"""

import logging
import sys

import uvicorn

from serving.errors import TridentError
from serving.fastapi_server.app import create_app
from serving.settings import load_settings


def main() -> None:
    """Run until SIGTERM or SIGINT, then answer what is under way and stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    log = logging.getLogger("trident")
    try:
        settings = load_settings()
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    log.info("settings: %s", settings.model_dump_json())
    uvicorn.run(
        "serving.fastapi_server.__main__:application",
        factory=True,
        host=settings.host,
        port=settings.ports.fastapi,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=int(settings.request_timeout_s) + 5,
    )


def application():  # type: ignore[no-untyped-def]
    """The factory that each worker process calls."""
    return create_app(load_settings())


if __name__ == "__main__":
    main()
