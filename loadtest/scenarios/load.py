"""One load: what the generator does in one run."""

from pydantic import BaseModel, ConfigDict, Field

from loadtest.settings import ScenarioName


class Load(BaseModel):
    """A closed loop: `concurrency` clients, each sending its next request when the answer to the last one is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: ScenarioName
    concurrency: int = Field(ge=1)
    warmup_s: float
    duration_s: float
