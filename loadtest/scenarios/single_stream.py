"""single-stream: one request at a time. What a lone user feels."""

from loadtest.scenarios.load import Load
from loadtest.settings import BenchSettings


def single_stream(settings: BenchSettings) -> list[Load]:
    """One load of concurrency 1."""
    return [Load(scenario="single-stream", concurrency=1, warmup_s=settings.warmup_s, duration_s=settings.duration_s)]
