"""Scenarios: which loads a lane gets. One module for each: its settings, and the loads that follow from them.

The terms are MLPerf LoadGen's (https://github.com/mlcommons/inference/tree/master/loadgen).
"""

from typing import Annotated, Final

from pydantic import Field

from loadtest.scenarios.offline import Offline
from loadtest.scenarios.scenario import Loads, PastLoad, Scenario, ScenarioSettings
from loadtest.scenarios.server import ServerScenario
from loadtest.scenarios.single_stream import SingleStream
from loadtest.scenarios.slo import Slo
from loadtest.scenarios.soak import Soak
from loadtest.scenarios.spike import Spike
from loadtest.scenarios.sweep import Sweep

AnyScenario = Annotated[
    SingleStream | Sweep | ServerScenario | Slo | Offline | Spike | Soak, Field(discriminator="kind")
]
SCENARIOS: Final[dict[str, type[SingleStream | Sweep | ServerScenario | Slo | Offline | Spike | Soak]]] = {
    "single-stream": SingleStream,
    "sweep": Sweep,
    "server": ServerScenario,
    "slo": Slo,
    "offline": Offline,
    "spike": Spike,
    "soak": Soak,
}

__all__ = [
    "SCENARIOS",
    "AnyScenario",
    "Loads",
    "PastLoad",
    "Scenario",
    "ScenarioSettings",
    "ServerScenario",
    "SingleStream",
    "Slo",
    "Soak",
    "Spike",
    "Sweep",
]
