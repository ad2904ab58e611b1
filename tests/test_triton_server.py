"""The Triton deployment without Triton: the rendered repository, and what is refused before a start."""

import re
import sys
from pathlib import Path

import pytest

from serving.bundle import Bundle
from serving.errors import DeploymentError
from serving.settings import ServingSettings
from serving.triton_server.launch import find_triton
from serving.triton_server.repository import build_repository


@pytest.fixture
def repository(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> Path:
    wanted = {"queue_delay_ms": 1.5, "max_batch_size": 4, "workers": 2, "threads": 3}
    build_repository(digits, settings.model_copy(update=wanted), tmp_path)
    return tmp_path


def config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text()


def test_the_ensemble_and_its_parts(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files == {
        "digits/config.pbtxt",
        "digits_preprocess/config.pbtxt",
        "digits_preprocess/1/model.py",
        "digits_preprocess/1/manifest.json",
        "digits_classifier/config.pbtxt",
        "digits_classifier/1/model.onnx",
        "digits_postprocess/config.pbtxt",
        "digits_postprocess/1/model.py",
        "digits_postprocess/1/manifest.json",
    }
    assert (repository / "digits" / "1").is_dir()  # an ensemble needs an empty version folder


def test_nothing_is_left_to_fill_in(repository: Path) -> None:
    for path in repository.rglob("config.pbtxt"):
        assert "${" not in path.read_text()


def test_delays_are_microseconds(repository: Path) -> None:
    assert "max_queue_delay_microseconds: 1500" in config(repository, "digits_classifier")


def test_the_classifier_suits_the_public_image_too(repository: Path) -> None:
    text = config(repository, "digits_classifier")
    assert 'platform: "onnxruntime_onnx"' in text
    assert "dims: [ 3, 32, 32 ]" in text
    assert "dims: [ 10 ]" in text
    assert "kind: KIND_CPU count: 2" in text
    assert re.search(r'"intra_op_thread_count" value: \{ string_value: "3" \}', text)


def test_gpu_instances(settings: ServingSettings, digits: Bundle, tmp_path: Path) -> None:
    build_repository(digits, settings.model_copy(update={"device": "cuda"}), tmp_path)
    assert "KIND_GPU" in config(tmp_path, "digits_classifier")
    assert "KIND_GPU" not in config(tmp_path, "digits_preprocess")


def test_no_queue_policy_that_stalls(repository: Path) -> None:
    """Triton's own queue bounds and timeouts stall its batcher for 500 ms."""
    for path in repository.rglob("config.pbtxt"):
        assert "queue_policy" not in path.read_text()


def test_a_missing_environment_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="make setup"):
        find_triton(tmp_path / "bin" / "python")
    with pytest.raises(DeploymentError, match="has no Triton"):
        find_triton(Path(sys.executable))
