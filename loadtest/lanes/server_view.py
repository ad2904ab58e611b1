"""A server's own view of where the time goes: seconds of decode, queue and inference per image, from the difference of its
counters before and after a run.
"""

import httpx

from loadtest.lanes.lane import Lane
from serving.clients.dialect import StageCounters, dialect_of
from serving.clients.endpoint import SERVERS


def read_counters(lane: Lane) -> StageCounters | None:
    """The server's current counters; None for a third-party server, or if it does not answer."""
    endpoint = lane.endpoint
    if endpoint is None or lane.server not in SERVERS:
        return None
    try:
        return dialect_of(endpoint.server).stage_counters(endpoint, lane.model, lane.version)
    except (httpx.HTTPError, KeyError, ValueError):
        return None


def stages_s(before: StageCounters | None, after: StageCounters | None) -> dict[str, float]:
    """Mean seconds per image and stage between two readings; empty if one is missing."""
    if before is None or after is None:
        return {}
    means = {}
    for stage, (seconds, count) in after.items():
        earlier_seconds, earlier_count = before.get(stage, (0.0, 0.0))
        if count > earlier_count:
            means[stage] = (seconds - earlier_seconds) / (count - earlier_count)
    return means
