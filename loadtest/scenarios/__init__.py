"""Scenarios: which load is put on a server. One module each; all of them give `Load`s, which the benchmark runs one at
a time.

The words are MLPerf LoadGen's (https://github.com/mlcommons/inference/tree/master/loadgen).
"""

from collections.abc import Callable
from typing import Final

from loadtest.scenarios.load import Load
from loadtest.scenarios.single_stream import single_stream
from loadtest.scenarios.sweep import sweep
from loadtest.settings import BenchSettings, ScenarioName

SCENARIOS: Final[dict[ScenarioName, Callable[[BenchSettings], list[Load]]]] = {
    "single-stream": single_stream,
    "sweep": sweep,
}

__all__ = ["SCENARIOS", "Load"]
