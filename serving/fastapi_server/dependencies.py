"""What FastAPI's routes depend on: the service, admission, and the API key schemes of the documentation."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from serving.fastapi_server.service import Service


def the_service(request: Request) -> Service:
    """What the endpoints of this process share."""
    service: Service = request.app.state.service
    return service


async def admitted(request: Request) -> AsyncIterator[None]:
    """Admit the request until it is answered.

    Raises:
        UnauthorizedError, OverloadedError.
    """
    with the_service(request).admission.admit(dict(request.scope["headers"])):
        yield


TheService = Annotated[Service, Depends(the_service)]
# For the documentation page, which then offers a field for the key. `admitted` reads the headers itself.
KEY_SCHEMES: Final[list[Any]] = [
    Depends(HTTPBearer(auto_error=False, description="needed if the server has API keys")),
    Depends(APIKeyHeader(name="X-Api-Key", auto_error=False, description="the same key in another header")),
]
ADMITTED: Final[list[Any]] = [Depends(admitted), *KEY_SCHEMES]
