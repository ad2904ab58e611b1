"""The errors of the load test. Every message states what to do."""

from bundle.errors import TridentError


class LoadtestError(TridentError):
    """The base class of all of them."""


class GeneratorError(LoadtestError):
    """The load generator failed; the message holds the end of its output."""


class TransportError(LoadtestError):
    """A request got no response. `sent_ns`: when it was sent (perf_counter)."""

    def __init__(self, message: str, sent_ns: int) -> None:
        super().__init__(message)
        self.sent_ns = sent_ns


class ResultError(LoadtestError):
    """A result is missing or damaged."""


class TargetError(LoadtestError):
    """A target's address cannot be parsed, or no server answers there."""
