"""The ordinary path of `POST /predict`, a bare ASGI application: every form of body, and several images.

FastAPI's part of a request (middlewares, routing, dependencies, response classes) takes longer than decoding a small
image. Therefore FastAPI only describes this endpoint (`app.py`). Plain requests take the fast path (`../fast_path.py`).
`make bench-overhead` measures both.
"""

from starlette.types import Receive, Scope, Send

from serving.fastapi_server.connection import (
    CLIENT_CLOSED_REQUEST,
    CONNECTION,
    ClientDisconnectedError,
    read_body,
    status_of_lost_request,
    wait_for_jobs,
)
from serving.fastapi_server.predict.bodies import images_in, is_image
from serving.fastapi_server.predict.request import PredictRequest
from serving.fastapi_server.service import Service


class PredictEndpoint:
    """The ASGI application of `POST /predict`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request = PredictRequest(self._service, headers)
        try:
            request.admit(scope["query_string"])
            body = await read_body(receive, self._service.settings.max_body_bytes)
            content_type = headers.get(b"content-type", b"")
            images = [body] if is_image(content_type) else await images_in(body, content_type.decode("latin-1"))
            futures = request.futures(images)
            response = request.succeed(await wait_for_jobs(futures, scope.get(CONNECTION)))
        except ClientDisconnectedError:
            request.abandon(status_of_lost_request(scope))
            return
        except Exception as error:
            response = request.fail(error)
        except BaseException:  # the process stops without waiting for requests
            request.abandon(CLIENT_CLOSED_REQUEST)
            raise
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": response.body})
