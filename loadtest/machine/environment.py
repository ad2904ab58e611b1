"""The environment of a measurement: hardware, system, versions, revision, command."""

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict

from bundle.provenance import git_revision, package_versions

_PACKAGES: Final = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numpy",
    "pillow",
    "fastapi",
    "uvicorn",
    "torchserve",
    "locust",
    "gevent",
)


class Environment(BaseModel):
    """The machine and its software. `cores`: how many cores this process may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    memory_gib: float
    system: str
    versions: dict[str, str]
    git_revision: str | None
    command: str


def describe_environment() -> Environment:
    """Describe this machine and this process."""
    return Environment(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=package_versions(_PACKAGES),
        git_revision=git_revision(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
