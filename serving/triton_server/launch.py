"""Start the tritonserver of the nvidia-pytriton wheel on this machine, with its python models in .venv-triton.

What is done by hand here, and why, was measured: a stub that cannot start makes the server hang for ever (so its
libraries are checked first), numpy 2 crashes it, and a symlinked backend is refused (so it is copied).
"""

import json
import math
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint
from serving.clients.http_wire import API_KEY_HEADER
from serving.scratch import SHARED_MEMORY, remove_scratch, scratch_name
from serving.server_api import fetch
from serving.servers.server import ServerPlan
from serving.settings import ServingSettings
from serving.triton_server.care import TritonCare
from serving.triton_server.control import ADMIN_HEADER, TritonControl
from serving.triton_server.repository import build_repository
from serving.triton_server.versions import TritonVersions

_FOR_CLIENTS: Final = ("inference", "metadata", "model-config", "statistics")
_FOR_US: Final = ("model-repository", "shared-memory", "trace", "logging")  # a load call may bring code along
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
        """PATH leads the embedded interpreter to its environment; the library path to libpython and the wheel's
        libraries.
        """
        kept = {
            key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES")
        }
        return kept | {
            "ORT_DISABLE_TELEMETRY": "1",
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": f"{self.library_folder}:{self.site / 'nvidia_pytriton.libs'}",
        }


def plan_triton(settings: ServingSettings, bundles: Sequence[Bundle], folder: Path) -> ServerPlan:
    """Write the model repository below `folder`, check that Triton can run here, and plan the start.

    Raises:
        DeploymentError: Triton is not installed, or would hang or crash here; the message says what to do.
    """
    settings = settings.of("triton")
    if settings.triton_home is None and settings.device != "cpu":
        raise DeploymentError(
            f"device = {settings.device}: the Triton of the wheel computes on the CPU only; a GPU needs its image "
            "(compose.gpu.yaml), or start the other servers only"
        )
    if settings.device == "tensorrt" and settings.triton_classifier == "native":
        raise DeploymentError(
            "device = tensorrt: nothing asks Triton's own backends for TensorRT; use device = cuda, or start the other "
            "servers only"
        )
    folder = folder.resolve()
    repository = folder / "model_repository"
    shutil.rmtree(folder, ignore_errors=True)
    repository.mkdir(parents=True)
    default = {bundle.manifest.model: bundle.name for bundle in bundles}  # of several versions, the last named one
    shared_prefix = f"{SHARED_MEMORY / scratch_name(folder)}_"
    for bundle in bundles:
        is_default = default[bundle.manifest.model] == bundle.name
        build_repository(bundle, settings, repository, is_default=is_default, shared_prefix=shared_prefix)
    if settings.triton_home is None:
        triton = find_triton(settings.triton_python)
        server, backends, variables = triton.server, folder / "backends", triton.variables
        _copy_backends(triton, backends)
        _check_runtime(triton, settings)
        _check_stub(triton, backends)
    else:  # complete as it is, its image has seen to that
        server, backends, variables = settings.triton_home, settings.triton_home / "backends", dict(os.environ)

    ports, token = settings.ports, secrets.token_urlsafe()
    exit_s = max(10, math.ceil(settings.request_timeout_s))  # what it has taken is answered before it ends
    command = (
        *(
            str(server / "bin/tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
        ),
        *("--model-control-mode=explicit", "--load-model=*", f"--exit-timeout-secs={exit_s}"),
        *(
            f"--http-address={settings.host}",
            f"--http-port={ports.triton}",
            "--http-header-forward-pattern=(?i)x-top-k",
        ),
        *(f"--grpc-address={settings.host}", f"--grpc-port={ports.triton_grpc}"),
        *(f"--metrics-address={settings.host}", f"--metrics-port={ports.triton_metrics}"),
        *("--allow-gpu-metrics=false", "--metrics-config=summary_latencies=true"),
        *(
            "--pinned-memory-pool-byte-size=0",
            f"--backend-config=python,shm-region-prefix-name={scratch_name(folder)}_",
        ),
        *_restrictions(settings, token),
    )
    url = f"http://{settings.host}:{ports.triton}"
    metrics_url = f"http://{settings.host}:{ports.triton_metrics}/metrics"
    control = TritonControl(f"{settings.host}:{ports.triton_grpc}", settings.start_timeout_s, token)
    return ServerPlan(
        endpoint=Endpoint(
            server="triton",
            url=url,
            grpc=f"{settings.host}:{ports.triton_grpc}",
            metrics_url=metrics_url,
        ),
        command=command,
        environment=variables,
        folder=folder,
        workers_ready=lambda: fetch(f"{url}/v2/health/ready")[0] == 200,
        versions=TritonVersions(control, repository, settings, shared_prefix),
        care=lambda pid: TritonCare(
            pid,
            control,
            repository,
            shared_prefix=shared_prefix,
            metrics_url=metrics_url,
            native=settings.triton_home is not None,
        ),
        before_start=lambda: remove_scratch(folder),
        cleanup=lambda: remove_scratch(folder),
        stop_timeout_s=exit_s + 5,
    )


def _restrictions(settings: ServingSettings, token: str) -> Iterator[str]:
    """What changes the server needs `token`; the rest but health the API key, if there is one. Triton takes one. Both
    stand in the process list of this machine.

    Raises:
        DeploymentError: a key that Triton's command line cannot carry.
    """
    yield from _restricted(_FOR_US, ADMIN_HEADER, token)
    key = settings.client_key
    if key is None:
        return
    if not re.fullmatch(r"[\w.~+/-]+", key):
        raise DeploymentError(
            "Triton's key may have letters, digits and . _ ~ + / - only; choose another first api_key"
        )
    yield from _restricted(_FOR_CLIENTS, API_KEY_HEADER, key)


def _restricted(protocols: Iterable[str], header: str, value: str) -> Iterator[str]:
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        yield f"{flag}={','.join(protocols)}:{header}={value}"


def find_triton(python: Path) -> TritonEnvironment:
    """Look into the environment of `python`.

    Raises:
        DeploymentError: it is not there, or cannot run Triton's python backend.
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
    """`backends/python` from the wheel, and the stand-ins for its missing native backends, which are ours."""
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
    for name in ("onnxruntime", "pytorch"):
        (backends / name).mkdir()
        shutil.copyfile(Path(__file__).with_name(f"{name}_backend.py"), backends / name / "model.py")


def _check_runtime(triton: TritonEnvironment, settings: ServingSettings) -> None:
    if settings.runtime == "torchscript" and not triton.has_torch:
        raise DeploymentError(f"runtime = torchscript needs torch in {triton.prefix}: `make setup` installs it")


def _check_stub(triton: TritonEnvironment, backends: Path) -> None:
    stub = backends / "python/triton_python_backend_stub"
    shown = subprocess.run(["ldd", stub], env=triton.variables, capture_output=True, text=True).stdout
    missing = re.findall(r"^\s*(\S+) => not found", shown, re.MULTILINE)
    if missing:
        raise DeploymentError(
            f"Triton's python backend cannot start: {', '.join(missing)} not found. Python needs its shared library: "
            f"`apt install libpython{triton.python}`, or a Python built with --enable-shared (`make setup PYTHON=...`)"
        )
