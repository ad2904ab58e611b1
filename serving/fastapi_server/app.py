"""The application of one worker process: routes and life cycle. There is no global state."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Message, Receive, Scope, Send

from bundle.schemas import Prediction, Predictions
from serving.fastapi_server.connection import ClientDisconnectedError, status_of_lost_request
from serving.fastapi_server.dependencies import KEY_SCHEMES
from serving.fastapi_server.metrics import NO_MODEL
from serving.fastapi_server.oip.routes import BODY_SCHEMAS
from serving.fastapi_server.oip.routes import router as inference_protocol
from serving.fastapi_server.predict.bodies import ImageJson
from serving.fastapi_server.predict.endpoint import PredictEndpoint
from serving.fastapi_server.problems import PROBLEMS, documented, install_problem_handlers
from serving.fastapi_server.request_headers import REQUEST_ID_HEADER, TIMEOUT_HEADER, request_id
from serving.fastapi_server.service import Service
from serving.fastapi_server.watchdog import MARGIN_S, Watchdog
from serving.settings import ServingSettings


class Application:
    """The ASGI application. `POST /predict` does not pass through FastAPI; everything else does."""

    def __init__(self, settings: ServingSettings) -> None:
        self.service = Service(settings.of("fastapi"))
        self._predict = PredictEndpoint(self.service)
        self._fastapi = _fastapi(self.service, self._predict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan of the process."""
        if scope["type"] != "http":
            await self._fastapi(scope, receive, send)
        elif scope["path"] == "/predict" and scope["method"] == "POST":
            await self._predict(scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's routes. Add the request id to the response, and count inference requests in the metrics."""
        started = time.perf_counter()
        identity = (REQUEST_ID_HEADER, request_id(dict(scope["headers"])))
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), identity]
            await send(message)

        try:
            await self._fastapi(scope, receive, send_with_id)
        finally:
            if scope["path"].endswith("/infer"):
                # Failed requests may name any model; as labels, those names would grow without bound.
                name = str(scope.get("path_params", {}).get("model", NO_MODEL)) if status == 200 else NO_MODEL
                self.service.metrics.answered(name, status, time.perf_counter() - started)


def create_app(settings: ServingSettings) -> Application:
    """The service with these settings. It loads its models when it starts, before it accepts requests."""
    return Application(settings)


DESCRIPTION: Final = """
Classify an image: **POST /predict** below, *Try it out*, choose a file. Or:

    curl -F file=@image.png http://HOST/predict
    curl --data-binary @image.png -H 'Content-Type: image/png' http://HOST/predict

The server also implements the Open Inference Protocol v2, so `tritonclient.http` works with it.
"""


def _fastapi(service: Service, endpoint: PredictEndpoint) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.agreement.join()
        watchdog = Watchdog(service.hosting.turns, service.settings.request_timeout_s + MARGIN_S)
        flushing = asyncio.create_task(service.flush_forever())
        yield
        await service.agreement.leave()
        await service.hosting.close()
        watchdog.end()
        flushing.cancel()
        await asyncio.wait([flushing])

    app = FastAPIOffline(title="Trident", description=DESCRIPTION, version="2", lifespan=lifespan)
    app.state.service = service
    install_problem_handlers(app)
    _add_predict(app, endpoint)
    app.include_router(inference_protocol)
    app.add_exception_handler(ClientDisconnectedError, _disconnected)
    describe = app.openapi
    app.openapi = lambda: _corrected(describe())  # type: ignore[method-assign]

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await service.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    def root() -> Response:
        return RedirectResponse("/docs")

    return app


async def _disconnected(request: Request, _: Exception) -> Response:
    """A response that is not sent; its status is for the metrics."""
    return Response(status_code=status_of_lost_request(request.scope))


def _corrected(description: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description, with the schemas of the bodies that the routes read themselves, and without FastAPI's 422
    for invalid parameters, which is a 400 here.
    """
    description["components"]["schemas"] |= BODY_SCHEMAS
    for path in description["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for schema in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(schema, None)
    return description


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODIES: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "one or more images",
                        }
                    },
                }
            },
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "application/octet-stream": _BINARY,
            "application/json": {"schema": ImageJson.model_json_schema()},
        },
    }
}


def _add_predict(app: FastAPI, endpoint: PredictEndpoint) -> None:
    """Describe /predict in OpenAPI. A request that arrives through this route is passed to the same endpoint."""

    class DelegatedResponse(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint(scope, receive, send)

    @app.post(
        "/predict",
        tags=["predict"],
        response_model=Prediction | Predictions,
        responses=documented(*PROBLEMS),
        openapi_extra=_BODIES,
        dependencies=KEY_SCHEMES,
    )
    async def predict(
        request: Request,
        top_k: Annotated[
            int | None, Query(ge=1, description="number of classes; also accepted as header X-Top-K; default: 5")
        ] = None,
        model: Annotated[
            str | None, Query(description="model name; default: the first model of the deployment")
        ] = None,
        version: Annotated[
            int | None, Query(ge=1, le=999_999_999, description="model version; default: the model's default version")
        ] = None,
        timeout_ms: Annotated[
            int | None,
            Header(alias=TIMEOUT_HEADER.decode(), ge=1, le=999_999_999, description="deadline in milliseconds"),
        ] = None,
    ) -> Response:
        """Classify one or more images. The answer to one image has `predictions`; the answer to several `file` fields has
        `results`, with one entry per image. The response repeats the header `X-Request-Id`.
        """
        return DelegatedResponse()
