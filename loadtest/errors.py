"""What can go wrong in a load test on purpose; every message says what to do."""


class LoadtestError(Exception):
    """Base of all of them."""


class GeneratorError(LoadtestError):
    """The load generator failed; the message holds its last words."""


class TransportError(LoadtestError):
    """A request got no answer. `sent_ns`: when it was sent (perf_counter)."""

    def __init__(self, message: str, sent_ns: int) -> None:
        super().__init__(message)
        self.sent_ns = sent_ns


class ResultError(LoadtestError):
    """A result is missing or damaged."""


class TargetError(LoadtestError):
    """A target is none: its address cannot be understood, or nobody answers there."""
