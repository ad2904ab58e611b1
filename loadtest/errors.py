"""What can go wrong in a load test on purpose; every message says what to do."""


class LoadtestError(Exception):
    """Base of all of them."""


class GeneratorError(LoadtestError):
    """The load generator failed; the message holds its last words."""


class ResultError(LoadtestError):
    """A result is missing or damaged."""
