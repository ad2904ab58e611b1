"""What the supervisor does for a running Triton.

Its python models run in stub processes. A stub that died is never started again: every request to it fails, while live,
ready and model-ready say yes. https://github.com/triton-inference-server/server/issues/8604
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bundle.store import Bundle
from serving.clients.http_wire import triton_model
from serving.server_api import counted
from serving.servers.server import NoCare
from serving.triton_server.admission import free_all
from serving.triton_server.control import TritonControl
from serving.triton_server.repository import admission_file, model_names

_STUB: Final = "triton_python_backend_stub"


class TritonCare(NoCare):
    """`serving.servers.server.Care`. Triton drains itself when it is stopped."""

    def __init__(
        self,
        pid: int,
        control: TritonControl,
        repository: Path,
        *,
        shared_prefix: str,
        metrics_url: str,
        native: bool,
    ) -> None:
        """With `native`, the server has backends for onnxruntime and pytorch of its own, without stubs."""
        self._pid = pid
        self._control = control
        self._repository = repository
        self._shared_prefix = shared_prefix
        self._metrics_url = metrics_url
        self._native = native

    def fault(self, bundles: Sequence[Bundle]) -> str:
        """Which models lack a stub process: fewer of them live than the model has instances."""
        short = self._short_of_stubs()
        return f"dead stub of {', '.join(sorted(short))}" if short else ""

    def mend(self, bundles: Sequence[Bundle]) -> str:
        """Load those models again. Triton does so only if a file of theirs is younger than before; the other models,
        and the instances that live, go on answering. The places of what was lost with a stub are free at once, and so
        are those of what still waits: it is answered all the same.
        """
        short = self._short_of_stubs()
        for name in sorted(short):
            for file in (self._repository / name).rglob("*"):
                os.utime(file)
            self._control.load(name)
        for bundle in bundles:
            if not short.isdisjoint(model_names(bundle)):
                free_all(admission_file(bundle, self._shared_prefix))
        return f"loaded {', '.join(sorted(short))} again" if short else ""

    def answered(self, bundle: Bundle) -> float:
        """The images that its classifier computed so far."""
        model = re.escape(f"{triton_model(bundle.manifest.model, bundle.manifest.version)}_classifier")
        return counted(self._metrics_url, rf'nv_inference_count\{{.*\bmodel="{model}".*\}}')

    def _short_of_stubs(self) -> set[str]:
        alive = self._stubs()
        configs = {path.parent.name: path.read_text() for path in self._repository.glob("*/config.pbtxt")}
        expected = {name: stubs_of(config, native=self._native) for name, config in configs.items()}
        short = {name for name, count in expected.items() if alive.get(name, 0) < count}
        return {name for name in short if self._control.states().get(name) == "READY"} if short else set()

    def _stubs(self) -> dict[str, int]:
        """Living stubs by model. A stub's command line has the path of its model, `<repository>/<model>/...`."""
        import psutil  # only who supervises needs it: Triton's own container has it not

        found: dict[str, int] = {}
        try:
            children = psutil.Process(self._pid).children(recursive=True)
        except psutil.Error:
            return found
        for child in children:
            try:
                words = child.cmdline()
                if words and words[0].endswith(_STUB) and child.status() != psutil.STATUS_ZOMBIE:
                    name = Path(words[1]).relative_to(self._repository).parts[0]
                    found[name] = found.get(name, 0) + 1
            except (psutil.Error, ValueError, IndexError):
                continue
        return found


def stubs_of(config: str, *, native: bool) -> int:
    """How many stubs a model of ours has: its instances, if it runs in stubs at all. Ensembles do not; nor do the
    native backends, for which the wheel's server has stand-ins in Python.
    """
    if 'platform: "ensemble"' in config or (native and 'backend: "python"' not in config):
        return 0
    return int(config.partition("instance_group")[2].partition("count:")[2].split()[0])
