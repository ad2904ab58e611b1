"""What every client can do, whatever server and protocol it speaks to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bundle.errors import TridentError
from bundle.schemas import Prediction


class UnreachableError(TridentError):
    """The server did not answer at all, or not in time."""

    kind = "unreachable"
    title = "The server cannot be reached"


@dataclass(frozen=True)
class TimedPrediction:
    """A prediction, how long it took as the client saw it, and where the server says the time went (Server-Timing;
    seconds; nothing over gRPC).
    """

    prediction: Prediction
    seconds: float
    server_timing: Mapping[str, float]


class Client(ABC):
    """A connection to one model on one server. Use it as a context manager, or close it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def ask(self, image: bytes, top_k: int | None = None) -> TimedPrediction:
        """The answer to one encoded image, with its times.

        Raises:
            UnreachableError, RefusedError, GarbledError.
        """

    def predict(self, image: bytes, top_k: int | None = None) -> Prediction:
        """The answer to one encoded image.

        Raises:
            UnreachableError, RefusedError, GarbledError.
        """
        return self.ask(image, top_k).prediction
