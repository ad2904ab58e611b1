"""Trident's errors, in the order in which a request can run into them.

Each class carries its HTTP status (RFC 9110), and ``kind``, which is the slug in the problem's type and the label in
the metrics. The message of a 4xx or 503 is written for the client; that of a 500 never leaves the process.
"""

from typing import ClassVar


class TridentError(Exception):
    """The base of all errors that Trident raises on purpose. `message`: what is wrong and, where possible, what to do."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


# --- the request


class RequestError(TridentError):
    """The request is malformed."""

    status = 400
    kind = "bad-request"
    title = "Malformed request"


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    kind = "unauthorized"
    title = "API key required"


class RequestTimeoutError(RequestError):
    """The request was not complete within `read_timeout_s`."""

    status = 408
    kind = "request-timeout"
    title = "Request too slow"


class UnknownModelError(RequestError):
    """The model, or this version of it, is not served."""

    status = 404
    kind = "unknown-model"
    title = "Unknown model"


class BodyTooLargeError(RequestError):
    """The body has more than `max_body_bytes` bytes."""

    status = 413
    kind = "body-too-large"
    title = "Body too large"


class UnsupportedMediaTypeError(RequestError):
    """The Content-Type is not accepted."""

    status = 415
    kind = "unsupported-media-type"
    title = "Unsupported image type"


# --- the image


class ImageError(RequestError):
    """The image cannot be decoded."""


class EmptyImageError(ImageError):
    """The image has no bytes."""

    kind = "empty-image"
    title = "Empty image"


class NotAnImageError(ImageError):
    """The bytes are not in an accepted image format."""

    status = 415
    kind = "not-an-image"
    title = "Unsupported image type"


class TooManyPixelsError(ImageError):
    """The image has more than `max_image_pixels` pixels. Found before any pixel is decoded."""

    status = 413
    kind = "too-many-pixels"
    title = "Image too large"


class UndecodableImageError(ImageError):
    """The format is known, but the data is damaged or truncated."""

    status = 422
    kind = "undecodable-image"
    title = "Image cannot be decoded"


# --- the server


class OverloadedError(TridentError):
    """The queue is full. Nothing was done; retry after `retry_after_s`."""

    status = 429
    kind = "overloaded"
    title = "Too many requests"


class UnavailableError(TridentError):
    """The model is not ready, or the server is draining."""

    status = 503
    kind = "unavailable"
    title = "Service unavailable"


class DeadlineExceededError(TridentError):
    """The answer was not ready before the request's deadline."""

    status = 504
    kind = "deadline-exceeded"
    title = "Deadline exceeded"


# --- deployment


class BundleError(TridentError):
    """A bundle is missing, damaged, or differs from its manifest."""

    kind = "bundle"
    title = "Bad bundle"


class DeploymentError(TridentError):
    """A server cannot be configured, started or reached."""

    kind = "deployment"
    title = "Deployment failed"
