"""POST /predict as a bare ASGI application: every form of body, several images.

FastAPI's share of a request (middlewares, routing, dependency solving, response classes) costs more than decoding a
small image, so it only describes this endpoint (`app.py`) and does not stand in its way. The plainest requests take
an even shorter way: `express.py`. `make bench-overhead` prints what it all costs.
"""

import asyncio
from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from bundle.errors import TridentError
from serving.fastapi_server.models.batcher import Job
from serving.fastapi_server.predict.bodies import ClientGoneError, images_in, is_image, read_body
from serving.fastapi_server.predict.request import PredictRequest
from serving.fastapi_server.protocol import CONNECTION, Connection
from serving.fastapi_server.service import Service


class PredictEndpoint:
    """The ASGI application behind `POST /predict`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        exchange = PredictRequest(self._service, headers)
        try:
            exchange.admit(scope["query_string"])
            declared = headers.get(b"content-length", b"")
            data = await read_body(receive, declared, self._service.settings.max_body_bytes)
            content_type = headers.get(b"content-type", b"")
            images = [data] if is_image(content_type) else await images_in(data, content_type.decode("latin-1"))
            futures = exchange.submit(images)
            reply = exchange.succeed(await results(futures, scope.get(CONNECTION)))
        except ClientGoneError:
            connection = scope.get(CONNECTION)
            exchange.abandon(too_slow=connection is not None and connection.too_slow)
            return
        except Exception as error:
            reply = exchange.fail(error)
        except BaseException:  # the process stops at once
            exchange.abandon()
            raise
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})


async def results(futures: "Sequence[asyncio.Future[Job]]", connection: Connection | None) -> list[Job | TridentError]:
    """Each image's job, or its own error; if none succeeded, the first error is raised.

    Raises:
        ImageError, DeadlineExceededError.
        ClientGoneError: the client closed the connection while it waited.
    """
    if connection is not None:
        for future in futures:
            connection.cancel_when_lost(future)
    try:
        done = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        for future in futures:
            future.cancel()
    results: list[Job | TridentError] = []
    for one in done:
        if isinstance(one, asyncio.CancelledError):
            raise ClientGoneError
        if not isinstance(one, Job | TridentError):
            raise one
        results.append(one)
    if all(isinstance(one, TridentError) for one in results):
        assert isinstance(results[0], TridentError)
        raise results[0]
    return results
