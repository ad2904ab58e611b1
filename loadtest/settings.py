"""The settings of a benchmark, from flags or a file. Frozen, and stored in its result."""

import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import LoadtestError
from loadtest.load import WarmUp
from loadtest.scenarios import SCENARIOS, AnyScenario, SingleStream, Sweep

_WARM_UP_FLAGS: Final = {"warmup_s": "min_s", "warmup_max_s": "max_s"}


class BenchSettings(BaseModel):
    """One benchmark. Field names are the keys of its file, and most are flags of `trident bench`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenarios: tuple[AnyScenario, ...] = Field(default=(SingleStream(), Sweep()), min_length=1)
    rounds: int = Field(default=3, ge=1, le=100, description="repetitions, each in a new random order")
    seed: int = Field(default=0, ge=0, description="seed of the order and of the arrivals")
    warm_up: WarmUp = WarmUp()
    initial_warmup_s: float = Field(
        default=3.0, ge=0, le=600, description="load on every lane before the first round, for just-in-time compilers"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="a request that takes longer has failed")
    max_in_flight: int = Field(default=512, ge=1, le=4096, description="connections of an open loop")
    processes: int = Field(default=1, ge=1, le=64, description="generator processes")
    repeats: int = Field(default=1, ge=0, le=10, description="how often a run distorted by the generator is repeated")
    ceiling_s: float = Field(default=2.0, ge=0, le=600, description="length of the ceiling's measurement; 0: none")
    calibration_s: float = Field(
        default=1.0, ge=0, le=600, description="length of the generator's calibration; 0: none"
    )
    price_per_hour: float | None = Field(default=None, ge=0, description="price of the machine, in any currency")
    keep_requests: bool = Field(default=True, description="store a row per request, one .npz per run")

    @property
    def estimate(self) -> int:
        """The approximate number of loads per lane."""
        return self.rounds * sum(scenario.estimate() for scenario in self.scenarios)


def read_settings(file: Path | None = None, **flags: Any) -> BenchSettings:
    """Read the settings of one benchmark.

    Args:
        file: TOML; its keys are the fields of `BenchSettings`; each scenario is a table `[[scenarios]]` with its `kind`.
        flags: override the file; None means not given. `scenario` lists kinds; a field of a scenario is set in every chosen
            scenario that has it.

    Raises:
        LoadtestError: a value is invalid; the message names its flag or key.
    """
    content: dict[str, Any] = {}
    if file is not None:
        try:
            content = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LoadtestError(f"{file} is not a benchmark file: {error}") from error
    given = {key: value for key, value in flags.items() if value is not None}
    kinds = given.pop("scenario", None)
    if kinds:
        content["scenarios"] = [{"kind": kind} for kind in kinds]
    elif "scenarios" not in content:
        content["scenarios"] = [scenario.model_dump() for scenario in BenchSettings().scenarios]
    for flag, value in given.items():
        _apply(content, flag, value)
    try:
        return BenchSettings.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{_where(fault['loc'], file)}: {fault['msg']}" for fault in error.errors()[:3])
        raise LoadtestError(faults) from error


def _apply(content: dict[str, Any], flag: str, value: Any) -> None:
    if flag in _WARM_UP_FLAGS:
        content["warm_up"] = {**content.get("warm_up", {}), _WARM_UP_FLAGS[flag]: value}
    elif flag in BenchSettings.model_fields:
        content[flag] = value
    else:
        owners = {kind for kind, scenario in SCENARIOS.items() if flag in scenario.model_fields}
        chosen = [entry for entry in content["scenarios"] if entry.get("kind") in owners]
        if not chosen:
            names = ", ".join(sorted(owners))
            raise LoadtestError(f"--{flag.replace('_', '-')} belongs to the scenario {names}, which is not selected")
        for entry in chosen:
            entry[flag] = value


def _where(location: tuple[int | str, ...], file: Path | None) -> str:
    """`--rounds`, or in a file `bench.toml: scenarios.0.sweep.duration_s`."""
    if file is not None:
        return f"{file}: {'.'.join(map(str, location))}"
    names = [part for part in location if isinstance(part, str) and part not in SCENARIOS]
    names = names[1:] or ["scenario"] if names[:1] == ["scenarios"] else names
    return f"--{names[0].replace('_', '-')}"
