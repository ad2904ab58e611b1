"""Check and measure what runs on a GPU. `make gpu-check`.

    python -m trident.gpu_check [--device cuda|cpu] [--steps tests,training,...] [--out FOLDER] [--quick]

Writes gpu-check.md, gpu-check.json and gpu-check.log into FOLDER. Steps that are not selected keep their figures of an earlier
run there. Exit code 1 if a step failed; what this machine lacks is skipped, with the reason.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from pydantic import ValidationError

from loadtest.machine.environment import describe_environment
from serving.processes import die_with_parent
from trident.gpu_check.context import MODELS, CheckSettings, StoredRows
from trident.gpu_check.report import JSON, Machine, Report, StepResult, markdown, write_report
from trident.gpu_check.steps import STEPS

OUT: Final = Path("artifacts/gpu-check")
LOG: Final = "gpu-check.log"
_KILL_AFTER_S: Final = 10.0
_PACKAGES: Final = ("python", "torch", "torchvision", "onnxruntime", "numpy", "pillow", "fastapi", "uvicorn")


def main() -> None:
    """Run the selected steps, and write the report after each."""
    arguments = _arguments()
    out: Path = arguments.out
    try:
        settings = _settings(arguments)
    except ValidationError as error:
        sys.exit(f"error: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}")
    unknown = set(arguments.steps) - set(STEPS)
    if unknown:
        sys.exit(f"error: --steps: no step {', '.join(sorted(unknown))}; known are {', '.join(STEPS)}")
    if settings.device == "cuda" and not _has_cuda():
        sys.exit("error: torch finds no CUDA device on this machine; `--device cpu` runs the same code on the CPU")
    settings.work.mkdir(parents=True, exist_ok=True)
    report = Report(
        created=datetime.now(UTC),
        device=settings.device,
        quick=settings.quick,
        command=shlex.join(["python", "-m", "trident.gpu_check", *sys.argv[1:]]),
        machine=_machine(settings.device),
        steps=_earlier_steps(out, settings),
    )
    with (out / LOG).open("a") as log:
        for name in [name for name in STEPS if name in arguments.steps]:
            print(f"{name} ...", end=" ", flush=True)
            result = run_step(name, settings, log)
            print(
                f"{result.status} in {result.seconds:.0f} s{f': {result.reason}' if result.reason else ''}", flush=True
            )
            report = _with_step(report, result)
            write_report(report, out)
    print(f"\n{markdown(report)}\n{(out / JSON).resolve()}")
    sys.exit(1 if set(report.failed) & set(arguments.steps) else 0)


def run_step(name: str, settings: CheckSettings, log: IO[str]) -> StepResult:
    """Run one step in a process of its own; its output goes to `log`. A step that takes longer than `step_timeout_s` is killed,
    with all its processes.
    """
    file = settings.work.resolve() / f"{name}.json"
    file.unlink(missing_ok=True)
    log.write(f"\n=== {name}\n")
    log.flush()
    offset, started, timed_out = log.tell(), time.perf_counter(), False
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.one_step", name, str(file)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=die_with_parent,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        process.communicate(settings.model_dump_json().encode(), timeout=settings.step_timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _end(process)
    stored = StoredRows.model_validate_json(file.read_text()) if file.is_file() else StoredRows()
    reason = stored.skipped or ""
    if timed_out:
        reason = f"it took longer than {settings.step_timeout_s:g} s"
    elif process.returncode:
        reason = _last_line(Path(log.name), offset) or f"it ended with code {process.returncode}"
    return StepResult(
        name=name,
        title=STEPS[name].title,
        status="failed" if process.returncode else "skipped" if stored.skipped else "done",
        reason=reason,
        seconds=time.perf_counter() - started,
        rows=stored.rows,
        notes=stored.notes,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let the step stop its servers, then kill what is left of its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _last_line(path: Path, offset: int) -> str:
    """The last line of a step's output, which names the error."""
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


def _earlier_steps(out: Path, settings: CheckSettings) -> tuple[StepResult, ...]:
    """The steps of an earlier report in the folder, if it is of this device and this length."""
    try:
        earlier = Report.model_validate_json((out / JSON).read_text())
    except (OSError, ValidationError):
        return ()
    return earlier.steps if (earlier.device, earlier.quick) == (settings.device, settings.quick) else ()


def _with_step(report: Report, result: StepResult) -> Report:
    steps = {step.name: step for step in (*report.steps, result)}
    return report.model_copy(update={"steps": tuple(steps[name] for name in STEPS if name in steps)})


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _machine(device: str) -> Machine:
    import torch

    environment = describe_environment()
    name = torch.cuda.get_device_name() if device == "cuda" else f"the CPU ({environment.cpu})"
    versions = {key: value for key, value in environment.versions.items() if key in _PACKAGES}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return Machine(
        device=name,
        cpu=environment.cpu,
        cores=environment.cores,
        versions=versions,
        git_revision=environment.git_revision,
    )


def _settings(arguments: argparse.Namespace) -> CheckSettings:
    given: dict[str, Any] = {
        name: value
        for name, value in vars(arguments).items()
        if name in CheckSettings.model_fields and value is not None
    }
    if arguments.quick:
        quick = {
            "models": ("resnet18",),
            "workers": (1,),
            "max_batch_size": 8,
            "concurrency": (1, 8),
            "image_size": (128, 96),
        }
        given = quick | given
    return CheckSettings(**{"work": arguments.out / "work"} | given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code without a GPU")
    parser.add_argument("--steps", type=_split(str), default=list(STEPS), help=f"of {','.join(STEPS)}; default: all")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the report; default: {OUT}")
    parser.add_argument(
        "--work", type=Path, help="folder of bundles and other intermediate files; default: FOLDER/work"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and short times: shows that the code runs")
    parser.add_argument("--models", type=_split(str), help=f"networks with random weights; default: {','.join(MODELS)}")
    parser.add_argument("--precisions", type=_split(str), help="fp32,bf16")
    parser.add_argument("--servers", type=_split(str), help="fastapi,torchserve,triton")
    parser.add_argument("--workers", type=_split(int), help="numbers of FastAPI workers; default: 1,2,4")
    parser.add_argument("--max-batch-size", type=int, help="default: 32")
    parser.add_argument("--concurrency", type=_split(int), help="default: 1,16,64,128")
    parser.add_argument("--image-size", type=_split(int, "x"), help="of the JPEGs that are sent; default: 500x375")
    parser.add_argument("--step-timeout-s", type=float, help="a step that takes longer fails; default: 1800")
    return parser.parse_args()


def _split(kind: Callable[[str], Any], separator: str = ",") -> Callable[[str], Sequence[Any]]:
    return lambda text: [kind(part) for part in text.split(separator)]


if __name__ == "__main__":
    main()
