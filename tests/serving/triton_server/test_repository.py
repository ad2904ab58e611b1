"""The Triton deployment without Triton: the rendered repository, and what is refused before a start."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from pydantic import SecretStr
from tritonclient.grpc.service_pb2 import RepositoryIndexRequest, RepositoryIndexResponse
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from bundle.errors import DeploymentError
from bundle.store import Bundle
from serving.clients.http_wire import API_KEY_HEADER
from serving.deployment import Deployment
from serving.servers.triton import TritonServer
from serving.settings import ServingSettings
from serving.triton_server.control import TritonControl
from serving.triton_server.environment import find_triton
from serving.triton_server.repository import build_repository, model_names, remove_models, write_default
from tests.metrics_server import metrics_server


@pytest.fixture
def repository(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> Path:
    wanted = {"queue_delay_ms": 1.5, "max_batch_size": 4, "workers": 2, "threads": 3}
    build_repository(digits, settings.model_copy(update=wanted).of("triton"), tmp_path)
    return tmp_path


def config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text()


def test_a_version_s_models_and_the_public_name(repository: Path, digits: Bundle) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    bundle = {path.relative_to(digits.path).as_posix() for path in digits.path.rglob("*") if path.is_file()}
    models = ("digits_v1_image", "digits_v1_classifier")
    assert files == {
        "digits/config.pbtxt",
        "digits_v1/config.pbtxt",
        *(f"{model}/config.pbtxt" for model in models),
        *(f"{model}/1/model.py" for model in models),
        *(f"{model}/1/bundle/{file}" for model in models for file in bundle),
    }
    for name in ("digits", "digits_v1"):
        assert (repository / name / "1").is_dir()  # an ensemble needs an empty version folder
        assert f'name: "{name}"' in config(repository, name)
        assert 'model_name: "digits_v1_image"' in config(repository, name)


def test_another_version_touches_nothing_but_the_public_name(
    settings: ServingSettings, digits: Bundle, repository: Path
) -> None:
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    second = Bundle(digits.path, digits.manifest.model_copy(update={"version": 2}))
    build_repository(second, settings.of("triton"), repository, is_default=False)
    assert all(path.read_bytes() == content for path, content in before.items())
    write_default(second, settings.of("triton"), repository)
    assert "versions: [ 2 ]" in config(repository, "digits")
    assert "digits_v1" not in config(repository, "digits")
    remove_models(model_names(digits), repository)
    assert not [path for path in repository.iterdir() if path.name.startswith("digits_v1")]


def test_nothing_is_left_to_fill_in(repository: Path) -> None:
    for path in repository.rglob("config.pbtxt"):
        assert "${" not in path.read_text()


def test_delays_are_microseconds(repository: Path) -> None:
    for model in ("digits_v1_image", "digits_v1_classifier"):
        assert "max_queue_delay_microseconds: 1500" in config(repository, model)


def test_the_wheel_has_only_python_models(repository: Path) -> None:
    for model in ("digits_v1_image", "digits_v1_classifier"):
        text = config(repository, model)
        assert 'backend: "python"' in text
        assert "kind: KIND_CPU count: 2" in text
        assert '\\"threads\\":3' in text
    assert "dims: [ 3, 32, 32 ]" in config(repository, "digits_v1_classifier")
    assert "dims: [ 10 ]" in config(repository, "digits_v1_classifier")
    assert "native_classifier" not in config(repository, "digits_v1_image")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A Triton laid out as in the public image."""
    for backend in ("onnxruntime", "pytorch", "python"):
        (tmp_path / "tritonserver/backends" / backend).mkdir(parents=True)
    return tmp_path / "tritonserver"


@pytest.mark.parametrize(
    ("runtime", "platform", "names", "weights"),
    [
        ("onnxruntime", "onnxruntime_onnx", ("image", "probabilities"), "model.onnx"),
        ("torchscript", "pytorch_libtorch", ("image__0", "probabilities__0"), "model.pt"),
    ],
)
def test_native_backends_classify_on_the_public_image(
    settings: ServingSettings,
    digits: Bundle,
    tmp_path: Path,
    image: Path,
    runtime: str,
    platform: str,
    names: tuple[str, str],
    weights: str,
) -> None:
    changes = {"runtime": runtime, "triton_home": image, "workers": 2, "threads": 3, "queue_delay_ms": 1.5}
    build_repository(digits, settings.model_copy(update=changes).of("triton"), tmp_path / "models")
    classifier, model, _ = (config(tmp_path / "models", name) for name in model_names(digits))
    assert f'platform: "{platform}"' in classifier
    assert f'name: "{names[0]}"' in classifier
    assert f'name: "{names[1]}"' in classifier
    assert re.search(r'(?i)intra_op_thread_count" value: \{ string_value: "3"', classifier)
    assert "count: 2" in classifier
    assert "max_queue_delay_microseconds: 1500" in classifier
    files = [path.name for path in (tmp_path / "models/digits_v1_classifier/1").iterdir()]
    assert files == [weights]
    (called,) = re.findall(r'"native_classifier" value: \{ string_value: (".*") \} \}', model)
    assert json.loads(json.loads(called)) == {
        "model": "digits_v1_classifier",
        "version": 1,
        "input_name": names[0],
        "output_name": names[1],
    }
    assert "count: 6" in model
    assert "max_queue_delay_microseconds: 0 " in model


def test_a_triton_without_the_runtime_s_backend_gets_python_models(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, image: Path
) -> None:
    (image / "backends/pytorch").rmdir()
    changes = {"runtime": "torchscript", "triton_home": image}
    build_repository(digits, settings.model_copy(update=changes).of("triton"), tmp_path / "models")
    assert 'backend: "python"' in config(tmp_path / "models", "digits_v1_classifier")
    assert (tmp_path / "models/digits_v1_image/1/bundle/model.pt").is_file()


def test_gpu_instances(settings: ServingSettings, digits: Bundle, tmp_path: Path, image: Path) -> None:
    changes = {"device": "cuda", "triton_home": image}
    build_repository(digits, settings.model_copy(update=changes).of("triton"), tmp_path / "models")
    assert "KIND_GPU" in config(tmp_path / "models", "digits_v1_classifier")
    assert "KIND_GPU" not in config(tmp_path / "models", "digits_v1_image")


def test_no_queue_policy_that_stalls(repository: Path) -> None:
    """Triton's own queue bounds and timeouts stall its batcher for 500 ms."""
    for path in repository.rglob("config.pbtxt"):
        assert "queue_policy" not in path.read_text()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_the_wheels_triton_does_not_pretend_to_use_a_gpu(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, device: str
) -> None:
    with pytest.raises(DeploymentError, match=f"device = {device}: .* on the CPU only"):
        TritonServer(settings.model_copy(update={"device": device}), Deployment((digits,)), tmp_path).prepare()


def test_tensorrt_is_refused_by_every_native_triton(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, image: Path
) -> None:
    wanted = settings.model_copy(update={"device": "tensorrt", "triton_home": image})
    with pytest.raises(DeploymentError, match="use device = cuda"):
        TritonServer(wanted, Deployment((digits,)), tmp_path / "stack").prepare()


@pytest.mark.parametrize(("request_timeout_s", "exit_s"), [(2.5, 10), (30.5, 31)])
def test_what_triton_has_taken_it_may_answer_before_it_ends(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, request_timeout_s: float, exit_s: int
) -> None:
    changes = {"request_timeout_s": request_timeout_s, "triton_home": tmp_path / "tritonserver"}
    server = TritonServer(settings.model_copy(update=changes), Deployment((digits,)), tmp_path / "stack")
    assert f"--exit-timeout-secs={exit_s}" in server.start_command().argv
    assert server.stop_timeout_s == exit_s + 5


@pytest.mark.parametrize("keys", [(), (SecretStr("first-key"),)])
def test_what_changes_triton_is_restricted_with_keys_and_without(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, keys: tuple[SecretStr, ...]
) -> None:
    changes = {"api_keys": keys, "triton_home": tmp_path / "tritonserver"}
    changed, deployment = settings.model_copy(update=changes), Deployment((digits,))
    servers = [TritonServer(changed, deployment, tmp_path / "stack") for _ in range(2)]
    tokens = set()
    for server in servers:
        restricted = [word.partition("=") for word in server.start_command().argv if "restricted" in word]
        assert {flag for flag, _, _ in restricted} == {"--http-restricted-api", "--grpc-restricted-protocol"}
        by_header = {what.partition(":")[2].partition("=")[0]: what.partition(":")[0] for _, _, what in restricted}
        assert by_header.pop("x-trident-admin") == "model-repository,shared-memory,trace,logging"
        assert by_header == ({API_KEY_HEADER: "inference,metadata,model-config,statistics"} if keys else {})
        tokens |= {what.rpartition("=")[2] for _, _, what in restricted} - {"first-key"}
    assert len(tokens) == len(servers)


def test_a_missing_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="make setup"):
        find_triton(tmp_path / "bin" / "python")
    with pytest.raises(DeploymentError, match="has no Triton"):
        find_triton(Path(sys.executable))


class FakeControl:
    """A running Triton's model control, as far as we use it."""

    def __init__(self, *loaded: str) -> None:
        self.loaded = set(loaded)
        self.calls: list[str] = []

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")
        self.loaded.discard(name)

    def states(self) -> dict[str, str]:
        return dict.fromkeys(self.loaded, "READY")


def triton_with(
    control: FakeControl, settings: ServingSettings, repository: Path, tmp_path: Path, *served: Bundle
) -> TritonServer:
    """A server with this control and model repository."""
    server = TritonServer(settings, Deployment(served), tmp_path / "stack")
    server._control = cast(TritonControl, control)
    server._repository = repository
    server.started(os.getpid())
    return server


HELD = """\
trident_held_images{model="digits_v1_image",stub="4194305",version="1"} %d
trident_held_images{model="digits_v2_image",stub="4194306",version="2"} 0
"""


def test_a_model_with_a_dead_stub_is_loaded_again(
    settings: ServingSettings, digits: Bundle, repository: Path, tmp_path: Path
) -> None:
    control = FakeControl("digits_v1_image")
    with metrics_server(HELD % 0) as port:
        ports = settings.ports.model_copy(update={"triton_metrics": port})
        server = triton_with(control, settings.model_copy(update={"ports": ports}), repository, tmp_path, digits)
        assert str(server.probe()) == "dead stub of digits_v1_image"
        assert server.repair() == "loaded digits_v1_image again"
    assert control.calls == ["load digits_v1_image"]


def test_triton_is_ended_if_a_dead_stub_held_requests(
    settings: ServingSettings, digits: Bundle, repository: Path, tmp_path: Path
) -> None:
    """They would never be answered, and Triton would wait for them."""
    control = FakeControl("digits_v1_image")
    with metrics_server(HELD % 3) as port, subprocess.Popen(["sleep", "60"]) as process:
        ports = settings.ports.model_copy(update={"triton_metrics": port})
        server = triton_with(control, settings.model_copy(update={"ports": ports}), repository, tmp_path, digits)
        server.started(process.pid)
        assert server.repair() == "ended Triton, for a dead stub held 3 images"
        assert process.wait(10) == -signal.SIGKILL
    assert control.calls == []


def test_triton_reports_what_it_answered(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    text = """\
# TYPE trident_images_total counter
trident_images_total{model="digits_v1_image",stub="7",version="1"} 1000
trident_images_total{model="digits_v1_image",stub="8",version="1"} 2000
trident_images_total{model="digits_v12_image",stub="9",version="12"} 7
trident_batches_total{model="digits_v1_image",stub="7",version="1"} 400
"""

    with metrics_server(text) as port:
        ports = settings.ports.model_copy(update={"triton_metrics": port})
        triton = TritonServer(settings.model_copy(update={"ports": ports}), Deployment((digits,)), tmp_path)
        assert triton.predictions_served(digits) == 3000
    assert triton.predictions_served(digits) is None


def test_an_unloaded_version_is_gone(
    settings: ServingSettings, digits: Bundle, repository: Path, tmp_path: Path
) -> None:
    control = FakeControl(*model_names(digits))
    triton_with(control, settings, repository, tmp_path).unload(digits)
    assert control.calls == [f"unload {name}" for name in ("digits_v1", "digits_v1_image", "digits_v1_classifier")]
    assert not [path for path in repository.iterdir() if path.name.startswith("digits_v1")]


def test_a_version_that_still_answers_is_not_loaded_again(
    settings: ServingSettings, digits: Bundle, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = FakeControl(*model_names(digits))
    monkeypatch.setattr(control, "unload", lambda _name: None)
    quick = settings.model_copy(update={"start_timeout_s": 0.05})
    with pytest.raises(
        DeploymentError, match="Triton has not unloaded digits_v1, digits_v1_classifier, digits_v1_image"
    ):
        triton_with(control, quick, repository, tmp_path).unload(digits)
    assert not [path for path in repository.iterdir() if path.name.startswith("digits_v1")]


def test_a_version_that_triton_does_not_let_go_of_is_not_loaded_again(
    settings: ServingSettings, digits: Bundle, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = FakeControl(*model_names(digits))

    def refuse(name: str) -> None:
        raise DeploymentError(f"Triton: cannot unload {name}")

    monkeypatch.setattr(control, "unload", refuse)
    with pytest.raises(DeploymentError, match="cannot unload digits_v1"):
        triton_with(control, settings, repository, tmp_path).unload(digits)
    assert not [path for path in repository.iterdir() if path.name.startswith("digits_v1")]


def test_a_proxy_for_the_world_outside_does_not_stand_between_us_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str | bytes]] = []

    class Triton(GRPCInferenceServiceServicer):  # type: ignore[misc]
        def RepositoryIndex(self, _request: RepositoryIndexRequest, context: grpc.ServicerContext) -> Any:
            seen.append(dict(context.invocation_metadata()))
            return RepositoryIndexResponse(models=[{"name": "digits", "state": "READY"}, {"name": "cats"}])

    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        add_GRPCInferenceServiceServicer_to_server(Triton(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        assert TritonControl(f"127.0.0.1:{port}", 10, "secret").states() == {"digits": "READY"}
        server.stop(None).wait()
    assert seen[0]["triton-grpc-protocol-x-trident-admin"] == "secret"
