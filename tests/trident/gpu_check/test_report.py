"""The report of the GPU check, and the steps that it keeps."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trident.gpu_check import __main__ as check
from trident.gpu_check.context import CheckSettings, StepRows, StoredRows
from trident.gpu_check.report import JSON, MARKDOWN, Machine, Report, StepResult, markdown, write_report

MACHINE = Machine(
    device="NVIDIA H100", cpu="Xeon", cores=16, versions={"python": "3.12", "torch": "2.11"}, git_revision="abc"
)
DONE = StepResult(
    name="decoding",
    title="Decoding JPEGs",
    status="done",
    seconds=12.4,
    rows=({"decoder": "Pillow", "images/s": 1234.5}, {"decoder": "nvJPEG", "images/s": 5.5, "within tolerance": None}),
    notes=("graphs: they need a CUDA device",),
)
FAILED = StepResult(name="tests", title="Tests marked gpu", status="failed", reason="2 tests failed")


def report(device: str = "cuda", quick: bool = False) -> Report:
    created = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return Report(created=created, device=device, quick=quick, command="python", machine=MACHINE, steps=(FAILED, DONE))


def test_the_markdown_names_the_device_and_has_a_table_per_step() -> None:
    text = markdown(report())
    assert text.startswith(
        "# GPU check on NVIDIA H100\n\n2026-01-02 03:04 UTC, revision abc, 16 cores of Xeon, python 3.12, "
    )
    assert "## Tests marked gpu\n\nFailed: 2 tests failed.\n" in text
    assert "Done in 12 s.\n\n| decoder | images/s | within tolerance |\n|---|---|---|\n| Pillow | 1234 | - |" in text
    assert "| nvJPEG | 5.5 | - |\n\nSkipped: graphs: they need a CUDA device." in text
    assert "in place of a GPU" not in text
    assert "in place of a GPU" in markdown(report("cpu"))
    assert "(`--quick`)" in markdown(report(quick=True))


def test_a_later_run_keeps_the_steps_of_an_earlier_one_on_the_same_device(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    assert (tmp_path / MARKDOWN).read_text() == markdown(report())
    settings = CheckSettings(device="cuda", work=tmp_path)
    assert [step.name for step in check._earlier_steps(tmp_path, settings)] == ["tests", "decoding"]
    assert check._earlier_steps(tmp_path, settings.model_copy(update={"device": "cpu"})) == ()
    again = check._with_step(report(), FAILED.model_copy(update={"status": "done"}))
    assert [(step.name, step.status) for step in again.steps] == [("tests", "done"), ("decoding", "done")]
    assert again.failed == []
    (tmp_path / JSON).write_text("{}")
    assert check._earlier_steps(tmp_path, settings) == ()


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    rows = StepRows(tmp_path / "rows.json")
    rows.add(model="resnet50", p50_ms=1.5)
    rows.skip("bf16: not supported")
    stored = StoredRows.model_validate_json((tmp_path / "rows.json").read_text())
    assert stored.rows == ({"model": "resnet50", "p50 ms": 1.5},)
    assert stored.notes == ("bf16: not supported",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--steps", "tests,speed"], "--steps: no step speed; known are tests, training"),
        (["--device", "cpu", "--precisions", "int8"], "error: precisions: "),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        check.main()


def test_without_a_gpu_the_check_says_how_to_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_has_cuda", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no CUDA device on this machine; `--device cpu` runs the same code"):
        check.main()
