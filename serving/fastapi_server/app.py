"""The application: routes and life cycle. Nothing is global; what a request needs hangs on `app.state`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.errors import UnavailableError
from serving.fastapi_server.hosting import Hosting
from serving.fastapi_server.metrics import Metrics
from serving.fastapi_server.predict import router
from serving.fastapi_server.problems import install_problem_handlers
from serving.settings import ServingSettings


def create_app(settings: ServingSettings) -> FastAPI:
    """The service that `settings` describe. Models are loaded when it starts, before it accepts requests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hosting: Hosting = app.state.hosting
        await asyncio.to_thread(hosting.load, settings)
        for hosted in hosting.all():
            manifest = hosted.bundle.manifest
            app.state.metrics.model_info.labels(manifest.model, manifest.version, settings.runtime).set(1)
        yield
        await asyncio.to_thread(hosting.close)

    app = FastAPI(
        title="Trident",
        summary="Image classification: the FastAPI lane.",
        version="2",
        lifespan=lifespan,
        openapi_tags=[{"name": "predict"}, {"name": "health"}],
    )
    app.state.settings = settings
    app.state.hosting = Hosting()
    app.state.metrics = Metrics()
    install_problem_handlers(app)
    app.include_router(router)

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"])
    async def ready(request: Request) -> dict[str, bool]:
        """Every model is loaded, warmed up, and has reproduced its golden answers."""
        if not request.app.state.hosting.ready:
            raise UnavailableError("the models are not ready", retry_after_s=1)
        return {"ready": True}

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
