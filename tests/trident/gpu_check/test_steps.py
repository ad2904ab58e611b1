"""The steps of the GPU check, on the CPU."""

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bundle.errors import TridentError
from bundle.manifest import ImageInput
from bundle.preprocess import preprocess
from training.models import Servable
from training.settings import resolve_settings
from trident.gpu_check import decoding_speed, gpu_tests, one_step, serving_speed
from trident.gpu_check.__main__ import run_step
from trident.gpu_check.context import CheckSettings, StepRows, StepSkippedError, StoredRows
from trident.gpu_check.random_models import _random_classifier, photograph
from trident.gpu_check.report import StepResult
from trident.gpu_check.steps import STEPS, Step
from trident.gpu_check.training_speed import _training_figures, generated_dataset

QUICK: dict[str, Any] = {
    "device": "cpu",
    "quick": True,
    "models": ("resnet18",),
    "workers": (1,),
    "max_batch_size": 4,
    "concurrency": (1, 4),
    "image_size": (96, 64),
}


def run(name: str, work: Path, **changes: Any) -> StepResult:
    with (work / "log").open("a") as log:
        return run_step(name, CheckSettings(**QUICK | {"work": work} | changes), log)


def test_every_step_has_its_function() -> None:
    for step in STEPS.values():
        assert callable(import_module(f"trident.gpu_check.{step.module}").run)


def test_a_step_that_crashes_names_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "broken", Step("broken", "Broken"))  # here, not in the step's process
    result = run("broken", tmp_path)
    assert (result.status, result.reason) == ("failed", "KeyError: 'broken'")


@pytest.mark.parametrize("error", [StepSkippedError("no such GPU"), TridentError("two tests failed")])
def test_a_step_is_skipped_or_fails_with_the_reason(
    error: TridentError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising(Step):
        def run(self, settings: CheckSettings, rows: StepRows) -> None:
            rows.add(model="resnet18")
            raise error

    file = tmp_path / "rows.json"
    monkeypatch.setitem(STEPS, "raising", Raising("raising", "Raising"))
    monkeypatch.setattr(sys, "argv", ["one_step", "raising", str(file)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(CheckSettings(**QUICK, work=tmp_path).model_dump_json()))
    if isinstance(error, StepSkippedError):
        one_step.main()
        assert StoredRows.model_validate_json(file.read_text()).skipped == "no such GPU"
        return
    with pytest.raises(SystemExit, match="two tests failed"):
        one_step.main()
    assert StoredRows.model_validate_json(file.read_text()).rows == ({"model": "resnet18"},)


def test_a_step_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    result = run("training", tmp_path, step_timeout_s=0.2)
    assert (result.status, result.reason) == ("failed", "it took longer than 0.2 s")
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "trident.gpu_check.one_step" in child.cmdline()]


def test_the_files_with_gpu_tests_are_found() -> None:
    root = Path(gpu_tests.__file__).parents[2]
    found = {path.name for path in (root / "tests").rglob("test_*.py") if gpu_tests.MARK in path.read_text()}
    assert {"test_training_modes.py", "test_static_batches.py"} <= found


def test_the_generated_images_can_be_learned() -> None:
    torch.set_num_threads(1)
    dataset = generated_dataset(320)
    assert dataset.train.pixels(3).shape == (3, 32, 32)
    assert (preprocess(dataset.train.encoded(3), dataset.input) == dataset.train.pixels(3)).all()
    settings = resolve_settings(
        {
            "data": "cifar10",
            "device": "cpu",
            "model": "simple_cnn",
            "batch_size": 16,
            "epochs": 2,
            "learning_rate": 0.05,
        }
    )
    figures = _training_figures(settings, dataset)
    assert figures["test accuracy"] > 0.5
    assert figures["images/s"] > 0


def test_random_weights_answer_differently_to_different_images() -> None:
    spec = ImageInput(height=32, width=32, resize="crop", filter="bilinear", shorter_side=36)
    pixels = np.stack([preprocess(photograph(number, 96, 64), spec) for number in range(8)])
    with torch.inference_mode():
        probabilities = Servable(_random_classifier("resnet18", 32, pixels))(torch.from_numpy(pixels)).numpy()
    between = np.abs(probabilities[:, None] - probabilities[None]).max(2)[~np.eye(8, dtype=bool)]
    assert between.min() > 3e-4  # the tolerance of an fp32 file is 1e-4


def test_decoding_by_torchvision_is_close_to_the_preprocessing() -> None:
    spec = ImageInput(height=48, width=64, resize="crop", filter="bilinear", shorter_side=64)
    images = [photograph(number, 200, 150) for number in range(2)]
    pixels = decoding_speed.decoded_on_device(images, spec, torch.device("cpu")).numpy()
    expected = np.stack([preprocess(data, spec) for data in images])
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 4


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving_speed.missing_package("fastapi", "cpu") is None
    monkeypatch.setattr(serving_speed.importlib.util, "find_spec", lambda name: None if name == "ts" else name)  # type: ignore[attr-defined]
    assert serving_speed.missing_package("torchserve", "cpu") == "the package of ts is not installed"
    monkeypatch.setenv("TRIDENT_TRITON_PYTHON", "/nowhere/python")
    assert serving_speed.missing_package("triton", "cpu") == "its environment (/nowhere/python) is not installed"


@pytest.mark.parametrize(("cores", "generators"), [(2, 1), (8, 2), (16, 4), (64, 4)])
def test_the_generator_gets_a_quarter_of_the_cores(
    cores: int, generators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    for_servers, for_generator = serving_speed.cores_of_generator_and_servers()
    assert len(for_generator) == generators
    assert sorted((*for_servers, *for_generator)) == list(range(cores))


@pytest.mark.integration
@pytest.mark.slow
def test_a_quick_check_on_the_cpu_measures_the_service(tmp_path: Path) -> None:
    for name in ("models", "model", "decoding"):
        assert run(name, tmp_path, precisions=("fp32",)).status == "done", (tmp_path / "log").read_text()
    served = run("serving", tmp_path, precisions=("fp32",), servers=("fastapi",))
    assert served.status == "done", (tmp_path / "log").read_text()
    (row,) = served.rows
    assert row["golden answers"] == "16 of 16"
    assert isinstance(row["of ceiling"], float)
    stored = StoredRows.model_validate_json((tmp_path / "serving.json").read_text())
    assert stored.rows == served.rows


def test_the_gpu_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" time="1.5"/><testcase classname="tests.a" time="0.5">'
        '<failure message="wrong"/></testcase><testcase classname="tests.b"><skipped/></testcase></testsuite></testsuites>'
    )
    assert gpu_tests._add_rows(report, StepRows(tmp_path / "rows.json")) == 1
    rows = StoredRows.model_validate_json((tmp_path / "rows.json").read_text()).rows
    assert [(row["tests"], row["passed"], row["failed"], row["skipped"], row["s"]) for row in rows] == [
        ("tests.a", 1, 1, 0, 2.0), ("tests.b", 0, 0, 1, 0.0)
    ]  # fmt: skip
