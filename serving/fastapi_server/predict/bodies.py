"""HTTP bodies in, encoded images out. Never reads past `max_body_bytes`.

Three forms: the image itself (`image/*` or `application/octet-stream`), multipart/form-data with one or more files in
fields `file`, and JSON `{"image_b64": "..."}`.
"""

import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive

from bundle.errors import BodyTooLargeError, EmptyImageError, RequestError, UnsupportedMediaTypeError

MAX_IMAGES: Final = 64


class ImageJson(BaseModel):
    """The JSON form."""

    model_config = ConfigDict(extra="forbid")

    image_b64: str = Field(description="the encoded image in base64")


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete: there is nobody to answer."""


async def read_body(receive: Receive, declared: bytes, max_body_bytes: int) -> bytes:
    """A request's body. `declared` is its Content-Length, or b"".

    Raises:
        BodyTooLargeError: declared or found to be larger; the rest is not read.
        ClientGoneError.
    """
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise BodyTooLargeError(f"the body has {declared.decode()} bytes; at most {max_body_bytes} are accepted")
    message: Message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_body_bytes:
                break
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    if len(body) > max_body_bytes:
        raise BodyTooLargeError(f"the body has more than {max_body_bytes} bytes")
    return body


def is_image(content_type: bytes) -> bool:
    """Whether the body is the image itself."""
    return content_type.startswith((b"image/", b"application/octet-stream")) or not content_type


async def images_in(body: bytes, content_type: str) -> list[bytes]:
    """The encoded images in a body of any of the three forms; at least one.

    Raises:
        UnsupportedMediaTypeError, RequestError, EmptyImageError.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if is_image(media_type.encode()):
        return [body]
    if media_type == "multipart/form-data":
        return await _from_multipart(body, content_type)
    if media_type == "application/json":
        return [_from_json(body)]
    raise UnsupportedMediaTypeError(
        f"Content-Type {media_type[:100]!r} is not accepted; send the image as image/*, as application/octet-stream, "
        "as multipart/form-data in a field `file`, or as JSON {'image_b64': ...}"
    )


async def _from_multipart(body: bytes, content_type: str) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        limits = {"max_files": MAX_IMAGES, "max_fields": MAX_IMAGES}
        parser = MultiPartParser(Headers({"content-type": content_type}), stream(), **limits)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(f"the form cannot be read: {error}") from error
    try:
        files = form.getlist("file")
        if not files:
            raise RequestError("the form has no field `file`")
        uploads = [file for file in files if isinstance(file, UploadFile)]
        if len(uploads) < len(files):
            raise RequestError("the field `file` must be a file upload (with curl: -F file=@image.png)")
        return [await upload.read() for upload in uploads]
    finally:
        await form.close()


def _from_json(body: bytes) -> bytes:
    try:
        encoded = ImageJson.model_validate_json(body).image_b64
    except ValidationError as error:
        raise RequestError(f"the body must be JSON {{'image_b64': '...'}}: {error.errors()[0]['msg']}") from error
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"image_b64 is not base64: {error}") from error
    if not data:
        raise EmptyImageError("image_b64 is empty")
    return data
