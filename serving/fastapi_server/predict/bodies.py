"""The encoded images in the body of `POST /predict`.

The body has one of three forms: the image itself (`image/*` or `application/octet-stream`), multipart/form-data with
one or more files in fields `file`, or JSON `{"image_b64": "..."}`.
"""

import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from bundle.errors import EmptyImageError, RequestError, UnsupportedMediaTypeError

MAX_IMAGES: Final = 64


class ImageJson(BaseModel):
    """The JSON form of a body."""

    model_config = ConfigDict(extra="forbid")

    image_b64: str = Field(description="the encoded image in base64")


def is_image(content_type: bytes) -> bool:
    """Whether the body is the image itself. An empty `content_type` counts as an image."""
    return content_type.startswith((b"image/", b"application/octet-stream")) or not content_type


async def images_in(body: bytes, content_type: str) -> list[bytes]:
    """The encoded images in a body of any of the three forms: at least one.

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
        raise RequestError(f"the form is malformed: {error}") from error
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
