"""Output of runs: JSON lines, TensorBoard, MLflow, report, profile and sweep."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.training_runs import train_digits
from training.errors import TrainingError
from training.settings import TrainSettings
from training.sweep import Outcome, build_trials, summarise


def test_every_tracker_logs_the_values_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = train_digits(
        tmp_path / "run", model="mlp", image_size=8, epochs=2, batch_size=128, track=("tensorboard", "mlflow")
    )
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [0, 1]
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 10]
    assert all(line["gradient_norm"] > 0 and line["learning_rate"] > 0 for line in steps)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("epoch/val_loss")}
    assert logged == pytest.approx({line["epoch"]: line["val_loss"] for line in epochs})

    (test_accuracy,) = (tmp_path / "mlruns").glob("*/*/metrics/test_accuracy")
    assert float(test_accuracy.read_text().split()[1]) == pytest.approx(result.test_accuracy)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["test_accuracy"] == result.test_accuracy
    assert len(written["class_accuracy"]) == 10


Run = Callable[..., tuple[int, str]]


def test_the_command_writes_a_report_and_a_profile(run: Run, tmp_path: Path) -> None:
    code, output = run(
        "train", "--model", "mlp", "--image-size", "8", "--epochs", "1", "--profile", "3", "--run-dir", "r"
    )
    assert code == 0, output
    report = (tmp_path / "r" / "report.html").read_text()
    for expected in (
        "Confusion matrix (test set)",
        "Accuracy per class",
        "data:image/png;base64,",
        "gradient norm",
    ):
        assert expected in report
    assert "http://www.w3.org" in report  # the namespace of SVG
    assert "<script" not in report
    assert "wait for data" in output
    trace = json.loads((tmp_path / "r" / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("backward") >= 3
    assert "aten::addmm" in (tmp_path / "r" / "profile" / "operators.txt").read_text()


def test_errors_name_the_flag(run: Run) -> None:
    for arguments, expected in (
        (["--optimizer", "adagrad"], "--optimizer: Input should be 'sgd', 'adam' or 'adamw'"),
        (["--freeze-epochs", "2"], "--freeze-epochs needs --pretrained"),
        (["--track", "wandb"], "--track"),
        (["--data", "nowhere"], "--data"),
    ):
        code, output = run("train", *arguments)
        assert code == 1
        assert expected in output


def test_a_grid_is_every_combination() -> None:
    trials = build_trials(["optimizer=adam,adamw", "label_smoothing=0,0.1"], {"epochs": "3"}, 2)
    assert len(trials) == 8
    assert (trials[0].values, trials[0].seed) == ((("optimizer", "adam"), ("label-smoothing", "0")), 0)
    assert trials[-1].settings == TrainSettings(optimizer="adamw", label_smoothing=0.1, epochs=3, seed=1)
    assert len({trial.folder for trial in trials}) == 8
    with pytest.raises(TrainingError, match="must have the form"):
        build_trials(["optimizer"], {}, 1)
    with pytest.raises(TrainingError, match="no setting 'optimiser'"):
        build_trials(["optimiser=adam"], {}, 1)


def test_a_single_run_has_no_deviation() -> None:
    assert Outcome("default", (0.9,), ((0.5,),), 1.0).deviation is None


def test_outcomes_are_sorted_by_accuracy(tmp_path: Path) -> None:
    trials = build_trials(["optimizer=sgd,adam"], {}, 2)
    for trial in trials:
        (tmp_path / trial.folder).mkdir()
        (tmp_path / trial.folder / "metrics.jsonl").write_text('{"epoch": 0, "val_loss": 0.5}\n')
    accuracies = dict(zip(trials, (0.9, 0.92, 0.97, 0.95), strict=True))
    results = {trial: {"test_accuracy": accuracies[trial], "seconds": 1.0} for trial in trials}
    best, worst = summarise(results, tmp_path)
    assert (best.name, worst.name) == ("optimizer=adam", "optimizer=sgd")
    assert best.accuracy == pytest.approx(0.96)
    assert best.deviation == pytest.approx(0.0141421, abs=1e-6)
    assert json.loads((tmp_path / "sweep.json").read_text())[0]["accuracies"] == [0.97, 0.95]


@pytest.mark.integration
def test_sweep(run: Run, tmp_path: Path) -> None:
    code, output = run(
        *("sweep", "--grid", "optimizer=adam,sgd", "--sweep-dir", "s"),
        *("--model", "mlp", "--image-size", "8", "--epochs", "1"),
    )
    assert code == 0, output
    assert output.count("test accuracy") == 3
    assert (tmp_path / "s" / "sweep.svg").is_file()
    code, output = run("sweep", "--grid", "optimizer=sgd", "--sweep-dir", "s", "--epochs", "2")
    assert code == 1
    assert "has a run with other settings" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grid", "optimizer=adam,adagrad"], "--optimizer: Input should be"),
        (["--grid", "optimiser=adam"], "no setting 'optimiser'"),
        (["--grid", "epochs=1,2", "--batch-size", "none"], "--batch-size: Input should be a valid integer"),
    ],
)
def test_a_sweep_checks_its_settings_before_it_starts(
    arguments: list[str], expected: str, run: Run, tmp_path: Path
) -> None:
    code, output = run("sweep", *arguments)
    assert (code, len(output.strip().splitlines())) == (1, 1)
    assert expected in output
    assert list(tmp_path.iterdir()) == []
