"""A server's container, from the container's own metrics (`serving/cgroup.py`, or cAdvisor's of one container)."""

from dataclasses import dataclass
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

_TIMEOUT_S: Final = 2.0


class ContainerUse(BaseModel):
    """The effect of a container's limits.

    Args:
        cpu_limit: in cores; None: no limit.
        memory_limit_mib: None: no limit.
        periods: elapsed periods of the CPU limit (100 ms each).
        throttled_periods: periods in which the container was throttled.
        throttled_s: throttled seconds, summed over the cores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_limit: float | None
    memory_limit_mib: float | None
    periods: int
    throttled_periods: int
    throttled_s: float

    def since(self, before: "ContainerUse") -> "ContainerUse":
        """The difference to an earlier reading."""
        return self.model_copy(
            update={
                "periods": self.periods - before.periods,
                "throttled_periods": self.throttled_periods - before.throttled_periods,
                "throttled_s": self.throttled_s - before.throttled_s,
            }
        )


@dataclass(frozen=True)
class ContainerReading:
    """A container at one moment. Counters start with the container."""

    cpu_s: float
    memory_mib: float
    threads: int
    use: ContainerUse


class Container:
    """Reads the metrics of a container."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(timeout=_TIMEOUT_S, trust_env=False)

    def read(self) -> ContainerReading | None:
        """The current metrics; None if the exporter does not answer or cannot read its cgroup."""
        try:
            text = self._client.get(self._url).raise_for_status().text
            values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
            return _reading(values)
        except (httpx.HTTPError, KeyError, ValueError):
            return None


def _reading(values: dict[str, float]) -> ContainerReading:
    quota, limit = values.get("container_spec_cpu_quota"), values.get("container_spec_memory_limit_bytes")
    return ContainerReading(
        cpu_s=values["container_cpu_usage_seconds_total"],
        memory_mib=values["container_memory_working_set_bytes"] / 2**20,
        threads=int(values["container_threads"]),
        use=ContainerUse(
            cpu_limit=quota / values["container_spec_cpu_period"] if quota else None,
            memory_limit_mib=limit / 2**20 if limit else None,
            periods=int(values.get("container_cpu_cfs_periods_total", 0)),
            throttled_periods=int(values.get("container_cpu_cfs_throttled_periods_total", 0)),
            throttled_s=values.get("container_cpu_cfs_throttled_seconds_total", 0.0),
        ),
    )
