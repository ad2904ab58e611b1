"""sweep: a ladder of concurrencies. Where throughput ends and queueing begins."""

from loadtest.scenarios.load import Load
from loadtest.settings import BenchSettings


def sweep(settings: BenchSettings) -> list[Load]:
    """One load per rung."""
    return [
        Load(scenario="sweep", concurrency=concurrency, warmup_s=settings.warmup_s, duration_s=settings.duration_s)
        for concurrency in settings.concurrency
    ]
