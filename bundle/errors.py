"""The errors of serving, in the order in which a request can meet them.

Each class carries its HTTP status (RFC 9110), and ``kind``, which is the slug in the problem's type and the label in
the metrics. The message of a 4xx or 503 is written for the client; that of a 500 never leaves the process.
"""

from typing import ClassVar


class TridentError(Exception):
    """Anything that serving raises on purpose. `message` says what is wrong and, where it can, what to do."""

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
    """No API key, or a wrong one."""

    status = 401
    kind = "unauthorized"
    title = "API key required"


class RequestTimeoutError(RequestError):
    """The request did not arrive whole within `read_timeout_s`."""

    status = 408
    kind = "request-timeout"
    title = "Request too slow"


class UnknownModelError(RequestError):
    """No such model, or no such version of it."""

    status = 404
    kind = "unknown-model"
    title = "Unknown model"


class BodyTooLargeError(RequestError):
    """More bytes than `max_body_bytes`."""

    status = 413
    kind = "body-too-large"
    title = "Body too large"


class UnsupportedMediaTypeError(RequestError):
    """The Content-Type, or what the bytes turn out to be, is no image that is accepted."""

    status = 415
    kind = "unsupported-media-type"
    title = "Not a supported image type"


# --- the image


class ImageError(RequestError):
    """The image cannot be turned into pixels."""


class EmptyImageError(ImageError):
    """No bytes."""

    kind = "empty-image"
    title = "Empty image"


class NotAnImageError(ImageError):
    """The bytes carry no signature of an accepted image format."""

    status = 415
    kind = "not-an-image"
    title = "Not a supported image type"


class TooManyPixelsError(ImageError):
    """More pixels than `max_image_pixels`; found before decoding them."""

    status = 413
    kind = "too-many-pixels"
    title = "Image too large"


class UndecodableImageError(ImageError):
    """A known format whose data is damaged or cut off."""

    status = 422
    kind = "undecodable-image"
    title = "Image cannot be decoded"


# --- the server


class OverloadedError(TridentError):
    """The queue is full. Nothing was done; come back after `retry_after_s`."""

    status = 429
    kind = "overloaded"
    title = "Too many requests"


class UnavailableError(TridentError):
    """The model is not ready, or the server is draining."""

    status = 503
    kind = "unavailable"
    title = "Service unavailable"


class DeadlineExceededError(TridentError):
    """The answer did not come in the time that the request allowed."""

    status = 504
    kind = "deadline-exceeded"
    title = "Deadline exceeded"


# --- deployment


class BundleError(TridentError):
    """A bundle is missing, damaged, or not what its manifest says."""

    kind = "bundle"
    title = "Bad bundle"


class DeploymentError(TridentError):
    """A server could not be configured, started or reached."""

    kind = "deployment"
    title = "Deployment failed"
