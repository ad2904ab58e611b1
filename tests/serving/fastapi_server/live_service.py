"""The FastAPI service on a real port, in a thread of the test's process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from serving.fastapi_server.app import Application, create_app
from serving.fastapi_server.protocol import ServiceProtocol
from serving.settings import ServingSettings
from tests.serving.fastapi_server.waiting import wait_for


@dataclass(frozen=True)
class Live:
    """A running service."""

    application: Application
    server: uvicorn.Server
    address: tuple[str, int]

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)


@contextmanager
def live_service(settings: ServingSettings) -> Iterator[Live]:
    """Start the service; stop it at the end of the block, as SIGTERM does."""
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        host="127.0.0.1",
        port=0,
        http=ServiceProtocol,
        ws="none",
        proxy_headers=False,
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), 60)
        assert server.started, "the service did not start"
        yield Live(application, server, server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
