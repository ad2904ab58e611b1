"""The Triton deployment without Triton: the rendered repository, and what is refused before a start."""

import re
import sys
import time
from pathlib import Path

import pytest

from serving.bundle import Bundle
from serving.errors import DeploymentError
from serving.settings import ServingSettings
from serving.triton_server.admission import Admission
from serving.triton_server.launch import find_triton, plan_triton
from serving.triton_server.repository import build_repository, model_names, remove_models, write_default


@pytest.fixture
def repository(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> Path:
    wanted = {"queue_delay_ms": 1.5, "max_batch_size": 4, "workers": 2, "threads": 3}
    build_repository(digits, settings.model_copy(update=wanted).of("triton"), tmp_path)
    return tmp_path


def config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text()


def test_the_ensembles_and_their_parts(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files == {
        "digits/config.pbtxt",
        "digits_v1/config.pbtxt",
        "digits_v1_admission/config.pbtxt",
        "digits_v1_admission/1/model.py",
        "digits_v1_admission/1/manifest.json",
        "digits_v1_preprocess/config.pbtxt",
        "digits_v1_preprocess/1/model.py",
        "digits_v1_preprocess/1/manifest.json",
        "digits_v1_classifier/config.pbtxt",
        "digits_v1_classifier/1/model.onnx",
        "digits_v1_postprocess/config.pbtxt",
        "digits_v1_postprocess/1/model.py",
        "digits_v1_postprocess/1/manifest.json",
    }
    for name in ("digits", "digits_v1"):
        assert (repository / name / "1").is_dir()  # an ensemble needs an empty version folder
        assert f'name: "{name}"' in config(repository, name)
        assert 'model_name: "digits_v1_classifier"' in config(repository, name)


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
    assert "max_queue_delay_microseconds: 1500" in config(repository, "digits_v1_classifier")


def test_the_classifier_suits_the_public_image_too(repository: Path) -> None:
    text = config(repository, "digits_v1_classifier")
    assert 'platform: "onnxruntime_onnx"' in text
    assert "dims: [ 3, 32, 32 ]" in text
    assert "dims: [ 10 ]" in text
    assert "kind: KIND_CPU count: 2" in text
    assert re.search(r'"intra_op_thread_count" value: \{ string_value: "3" \}', text)


def test_the_runtimes_of_triton_itself_and_the_python_backend(
    settings: ServingSettings, digits: Bundle, tmp_path: Path
) -> None:
    for runtime, classifier, kind, names, weights in (
        ("onnxruntime", "native", 'platform: "onnxruntime_onnx"', ("image", "probabilities"), "model.onnx"),
        ("torchscript", "native", 'platform: "pytorch_libtorch"', ("image__0", "probabilities__0"), "model.pt"),
        ("torchscript", "python", 'backend: "python"', ("image", "probabilities"), "bundle/model.pt"),
        ("onnxruntime", "python", 'backend: "python"', ("image", "probabilities"), "bundle/model.onnx"),
    ):
        wanted = settings.model_copy(update={"runtime": runtime, "triton_classifier": classifier, "threads": 3}).of(
            "triton"
        )
        build_repository(digits, wanted, tmp_path / runtime / classifier)
        text = config(tmp_path / runtime / classifier, "digits_v1_classifier")
        assert kind in text
        assert f'name: "{names[0]}"' in text
        assert f'name: "{names[1]}"' in text
        assert f'key: "{names[0]}" value: "image"' in config(tmp_path / runtime / classifier, "digits")
        assert (tmp_path / runtime / classifier / "digits_v1_classifier/1" / weights).is_file()
        threads = re.search(r'(?i)intra_op_thread_count" value: \{ string_value: "3"|threads\\": ?3', text)
        assert threads, text


def test_gpu_instances(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    build_repository(digits, settings.model_copy(update={"device": "cuda"}).of("triton"), tmp_path)
    assert "KIND_GPU" in config(tmp_path, "digits_v1_classifier")
    assert "KIND_GPU" not in config(tmp_path, "digits_v1_preprocess")


def test_no_queue_policy_that_stalls(repository: Path) -> None:
    """Triton's own queue bounds and timeouts stall its batcher for 500 ms."""
    for path in repository.rglob("config.pbtxt"):
        assert "queue_policy" not in path.read_text()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_the_wheels_triton_does_not_pretend_to_use_a_gpu(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, device: str
) -> None:
    with pytest.raises(DeploymentError, match=f"device = {device}: .* on the CPU only"):
        plan_triton(settings.model_copy(update={"device": device}), [digits], tmp_path)


def test_a_missing_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="make setup"):
        find_triton(tmp_path / "bin" / "python")
    with pytest.raises(DeploymentError, match="has no Triton"):
        find_triton(Path(sys.executable))


def test_admission_is_a_bound_and_its_places_come_back(tmp_path: Path) -> None:
    door, other_process = (Admission(tmp_path / "table", 2, timeout_s=60) for _ in range(2))
    first, second = door.take(), other_process.take()
    assert first is not None
    assert second is not None
    assert (door.take(), other_process.take()) == (None, None)
    other_process.give_back(first)
    assert other_process.waiting == 1
    assert door.take() is not None
    assert door.take() is None


def test_a_place_that_nobody_gave_back_is_free_when_its_time_is_up(tmp_path: Path) -> None:
    door = Admission(tmp_path / "table", 1, timeout_s=0.05)
    lost = door.take()
    assert lost is not None
    while not door.is_late(lost):
        time.sleep(0.01)
    again = door.take()
    assert again is not None
    door.give_back(lost)  # it comes after all: not its place any more
    assert door.waiting == 1
    door.give_back(again)
    assert door.waiting == 0
