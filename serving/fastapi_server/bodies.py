"""HTTP bodies in, encoded pictures out. Never reads past `max_body_bytes`.

Three forms: the picture itself (`image/*` or `application/octet-stream`), multipart/form-data with one or more fields
`file`, and JSON `{"image_b64": "..."}`.
"""

import base64
import binascii
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from serving.errors import BodyTooLargeError, EmptyImageError, RequestError, UnsupportedMediaTypeError

MAX_PICTURES: Final = 1


class ImageJson(BaseModel):
    """The JSON form."""

    model_config = ConfigDict(extra="forbid")

    image_b64: str


async def read_pictures(request: Request, max_body_bytes: int) -> list[bytes]:
    """The encoded pictures of a request, at least one.

    Raises:
        BodyTooLargeError, UnsupportedMediaTypeError, RequestError.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise BodyTooLargeError(f"the body has {declared} bytes; at most {max_body_bytes} are accepted")
    request = Request(request.scope, _limited(request.receive, max_body_bytes))
    media_type = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    try:
        if media_type.startswith("image/") or media_type == "application/octet-stream":
            return [await request.body()]
        if media_type == "multipart/form-data":
            return await _from_multipart(request)
        if media_type == "application/json":
            return [_from_json(await request.body())]
    except ClientDisconnect as error:
        raise RequestError("the client went away before the body was complete") from error
    raise UnsupportedMediaTypeError(
        f"Content-Type {media_type!r} is not accepted; send the picture as image/*, as application/octet-stream, "
        "as multipart/form-data in a field `file`, or as JSON {'image_b64': ...}"
    )


def _limited(receive: Receive, max_body_bytes: int) -> Receive:
    """`receive`, which stops when a body without Content-Length (or with a false one) grows too large."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_body_bytes:
            raise BodyTooLargeError(f"the body has more than {max_body_bytes} bytes")
        return message

    return limited


async def _from_multipart(request: Request) -> list[bytes]:
    try:
        async with request.form(max_files=MAX_PICTURES, max_fields=MAX_PICTURES) as form:
            files = form.getlist("file")
            if not files:
                raise RequestError("the form has no field `file`")
            if not all(isinstance(file, UploadFile) for file in files):
                raise RequestError("the field `file` must be a file upload (with curl: -F file=@picture.png)")
            return [await file.read() for file in files if isinstance(file, UploadFile)]
    except HTTPException as error:  # what Starlette makes of its MultiPartException
        raise RequestError(f"the form cannot be read: {error.detail}") from error


def _from_json(body: bytes) -> bytes:
    try:
        encoded = ImageJson.model_validate_json(body).image_b64
    except ValidationError as error:
        raise RequestError(f"the body must be JSON {{'image_b64': '...'}}: {error.errors()[0]['msg']}") from error
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise RequestError(f"image_b64 is not base64: {error}") from error
    if not data:
        raise EmptyImageError("image_b64 is empty")
    return data
