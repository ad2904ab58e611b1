"""The supervisor's clocks and limits. Tests pass faster ones."""

from pydantic import BaseModel, ConfigDict, Field


class SupervisionTiming(BaseModel):
    """How often the supervisor checks a server, and when it repairs, restarts or gives up.

    Args:
        poll_s: pause between readiness checks while a server starts.
        watch_s: pause between checks of a server's workers.
        canary_s: pause between golden requests to a server that looks healthy.
        max_failed_canaries: golden requests that fail in a row before the server is restarted.
        repair_after_s: time that a server gets to replace its own workers before Trident repairs it.
        max_restarts: restarts in a row before the server counts as failed.
        stable_s: a server that was ready for this long starts with a fresh count of restarts.
        restart_delay_s: pause before the first restart; it doubles with each further one, up to `max_restart_delay_s`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_s: float = Field(default=0.1, gt=0)
    watch_s: float = Field(default=1.0, gt=0)
    canary_s: float = Field(default=5.0, gt=0)
    max_failed_canaries: int = Field(default=3, ge=1)
    repair_after_s: float = Field(default=20.0, ge=0)
    max_restarts: int = Field(default=5, ge=0)
    stable_s: float = Field(default=60.0, ge=0)
    restart_delay_s: float = Field(default=0.25, ge=0)
    max_restart_delay_s: float = Field(default=8.0, ge=0)
