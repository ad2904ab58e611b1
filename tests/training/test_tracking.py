"""What a run leaves for people: JSON lines, TensorBoard, MLflow, the report, the profile, the sweep."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.training_runs import train_digits
from training.errors import TrainingError
from training.sweep import Trial, summarised, trials


def test_a_run_leaves_its_numbers_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    kept = {event.step: event.value for event in events.Scalars("epoch/val_loss")}
    assert kept == pytest.approx({line["epoch"]: line["val_loss"] for line in epochs})

    (tests_accuracy,) = (tmp_path / "mlruns").glob("*/*/metrics/test_accuracy")
    assert float(tests_accuracy.read_text().split()[1]) == pytest.approx(result.test_accuracy)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["test_accuracy"] == result.test_accuracy
    assert len(written["class_accuracy"]) == 10


Run = Callable[..., tuple[int, str]]


def test_the_command_writes_a_report_and_a_profile(run: Run, tmp_path: Path) -> None:
    code, said = run(
        "train", "--model", "mlp", "--image-size", "8", "--epochs", "1", "--profile", "3", "--run-dir", "r"
    )
    assert code == 0, said
    report = (tmp_path / "r" / "report.html").read_text()
    for expected in (
        "Confusions on the test set",
        "Accuracy per class",
        "data:image/png;base64,",
        "norm of the gradient",
    ):
        assert expected in report
    assert "http://www.w3.org" in report  # SVG's name, and no other address
    assert "<script" not in report
    assert "wait for the data" in said
    trace = json.loads((tmp_path / "r" / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("backward") >= 3
    assert "aten::addmm" in (tmp_path / "r" / "profile" / "operators.txt").read_text()


def test_bad_settings_are_named_as_flags(run: Run) -> None:
    for arguments, expected in (
        (["--optimizer", "adagrad"], "--optimizer: Input should be 'sgd', 'adam' or 'adamw'"),
        (["--freeze-epochs", "2"], "freeze_epochs goes with pretrained"),
        (["--track", "wandb"], "--track"),
        (["--data", "nowhere"], "--data"),
    ):
        code, said = run("train", *arguments)
        assert code == 1
        assert expected in said


def test_a_grid_is_every_combination() -> None:
    chosen = trials(["optimizer=adam,adamw", "label_smoothing=0,0.1"], 2)
    assert len(chosen) == 8
    assert chosen[0] == Trial((("optimizer", "adam"), ("label-smoothing", "0")), 0)
    assert len({trial.folder for trial in chosen}) == 8
    with pytest.raises(TrainingError, match="not of the form"):
        trials(["optimizer"], 1)


def test_a_summary_has_the_best_first(tmp_path: Path) -> None:
    chosen = trials(["optimizer=sgd,adam"], 2)
    for trial in chosen:
        (tmp_path / trial.folder).mkdir()
        (tmp_path / trial.folder / "metrics.jsonl").write_text('{"epoch": 0, "val_loss": 0.5}\n')
    accuracies = dict(zip(chosen, (0.9, 0.92, 0.97, 0.95), strict=True))
    results = {trial: {"test_accuracy": accuracies[trial], "seconds": 1.0} for trial in chosen}
    best, worst = summarised(results, tmp_path)
    assert (best.name, worst.name) == ("optimizer=adam", "optimizer=sgd")
    assert best.accuracy == pytest.approx(0.96)
    assert best.deviation == pytest.approx(0.0141421, abs=1e-6)
    assert json.loads((tmp_path / "sweep.json").read_text())[0]["accuracies"] == [0.97, 0.95]


@pytest.mark.integration
def test_sweep(run: Run, tmp_path: Path) -> None:
    code, said = run(
        *("sweep", "--grid", "optimizer=adam,sgd", "--seeds", "2", "--sweep-dir", "s"),
        *("--model", "mlp", "--image-size", "8", "--epochs", "1"),
    )
    assert code == 0, said
    assert said.count("test accuracy") == 5
    assert (tmp_path / "s" / "sweep.svg").is_file()
    code, said = run("sweep", "--grid", "optimizer=adam,adagrad", "--sweep-dir", "s", "--epochs", "1")
    assert code == 1
    assert "--optimizer: Input should be" in said
