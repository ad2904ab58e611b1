"""The environment in which Triton and its python models run: the nvidia-pytriton wheel, with an older numpy.

Each check guards against an observed failure: a stub that cannot start makes the server hang for ever, numpy 2 crashes it, and it
refuses a symlinked backend (so the backends are copied).
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import DeploymentError
from serving.settings import ServerSettings

_PROBE: Final = """
import importlib.util, json, sys, sysconfig, numpy, importlib.metadata as metadata
print(json.dumps({
    "prefix": sys.prefix,
    "site": str(metadata.distribution("nvidia-pytriton").locate_file("")),
    "library_folder": sysconfig.get_config_var("LIBDIR"),
    "python": "%d.%d" % sys.version_info[:2],
    "numpy": numpy.__version__,
    "has_torch": importlib.util.find_spec("torch") is not None,
}))
"""


@dataclass(frozen=True)
class TritonEnvironment:
    """The virtual environment in which Triton and its python models run."""

    prefix: str
    site: Path
    library_folder: str
    python: str
    numpy: str
    has_torch: bool

    @property
    def server(self) -> Path:
        """The wheel's tritonserver folder."""
        return self.site / "pytriton/tritonserver"

    @property
    def variables(self) -> dict[str, str]:
        """PATH leads the embedded interpreter to its environment, LD_LIBRARY_PATH to libpython and the wheel's libraries."""
        kept = {
            key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES")
        }
        return kept | {
            "ORT_DISABLE_TELEMETRY": "1",
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": f"{self.library_folder}:{self.site / 'nvidia_pytriton.libs'}",
        }


def prepare_backends(settings: ServerSettings, backends: Path) -> TritonEnvironment:
    """Find Triton, copy its backends to the folder `backends`, and check that it can run.

    Raises:
        DeploymentError: it is not installed, or would hang or crash; the message says what to do.
    """
    triton = find_triton(settings.triton_python)
    _copy_backends(triton, backends)
    if settings.runtime == "torchscript" and not triton.has_torch:
        raise DeploymentError(f"runtime = torchscript needs torch in {triton.prefix}: `make setup` installs it")
    _check_stub(triton, backends)
    return triton


def find_triton(python: Path) -> TritonEnvironment:
    """Inspect the environment of `python`.

    Raises:
        DeploymentError: it does not exist, or cannot run Triton's python backend.
    """
    if not python.is_file():
        raise DeploymentError(f"Triton's environment is missing ({python}); `make setup` makes it")
    done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True)
    if done.returncode:
        raise DeploymentError(
            f"{python} has no Triton; `make setup` installs it ({done.stderr.strip().splitlines()[-1:]})"
        )
    found = json.loads(done.stdout)
    environment = TritonEnvironment(**{**found, "site": Path(found["site"])})
    if int(environment.numpy.partition(".")[0]) >= 2:
        raise DeploymentError(
            f"Triton's python backend crashes with numpy {environment.numpy}; install 'numpy<2' into {environment.prefix}"
        )
    return environment


def _copy_backends(triton: TritonEnvironment, backends: Path) -> None:
    """Copy `backends/python` from the wheel. It has no other backend."""
    wheel = triton.server
    stub = wheel / "python_backend_stubs" / triton.python / "triton_python_backend_stub"
    if not stub.is_file():
        raise DeploymentError(f"the nvidia-pytriton wheel has no stub for Python {triton.python}; use 3.11 or 3.12")
    (backends / "python").mkdir(parents=True)
    for file in (
        wheel / "backends/python/libtriton_python.so",
        wheel / "backends/python/triton_python_backend_utils.py",
        stub,
    ):
        shutil.copy2(file, backends / "python" / file.name)


def _check_stub(triton: TritonEnvironment, backends: Path) -> None:
    stub = backends / "python/triton_python_backend_stub"
    shown = subprocess.run(["ldd", stub], env=triton.variables, capture_output=True, text=True).stdout
    missing = re.findall(r"^\s*(\S+) => not found", shown, re.MULTILINE)
    if missing:
        raise DeploymentError(
            f"Triton's python backend cannot start: {', '.join(missing)} not found. It needs Python's shared library: "
            f"`apt install libpython{triton.python}`, or a Python built with --enable-shared (`make setup PYTHON=...`)"
        )
