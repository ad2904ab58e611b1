"""Flags generated from a settings model."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field, ValidationError, model_validator
from typer.testing import CliRunner

from training.settings import TrainSettings
from trident.flags import describe_errors, flag_name, settings_command


class Settings(BaseModel):
    """One field of every type."""

    server: Literal["fastapi", "triton"] = Field(
        default="fastapi", description="The server.", json_schema_extra={"group": "Servers"}
    )
    max_batch_size: int = Field(default=8, ge=1, description="Images per batch.")
    rates: tuple[float, ...] = Field(default=(), description="Requests per second.")
    out: Path | None = Field(
        default=None, description="Folder [new].", json_schema_extra={"group": "Output", "default": "a new one"}
    )
    color: bool = Field(default=True, description="Use colour.", json_schema_extra={"off": "monochrome"})
    quiet: bool = Field(default=False, description="Write less.")

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.quiet and self.max_batch_size > 100:
            raise ValueError("--quiet needs a small batch")
        return self


def run_command(*arguments: str, hidden: bool = False) -> tuple[dict[str, Any], str]:
    """Run a command with generated flags and one of its own; return the given values and the output."""
    given: dict[str, Any] = {}
    app = typer.Typer(rich_markup_mode="rich")
    recipes = {"large": {"max_batch_size": 64, "quiet": True}}

    @app.command(cls=settings_command(lambda: Settings, lambda: recipes, hidden=hidden))
    def command(context: typer.Context, times: int = 1) -> None:
        given.update(context.obj, times=times)

    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return given, result.output


def test_only_given_flags_have_a_value() -> None:
    assert run_command()[0] == {"times": 1}
    given, _ = run_command("--max-batch-size", "4", "--rates", "1.5,20", "--monochrome", "--quiet", "--times", "3")
    assert given == {"max_batch_size": "4", "rates": ("1.5", "20"), "color": False, "quiet": True, "times": 3}
    assert Settings.model_validate({key: value for key, value in given.items() if key != "times"}) == Settings(
        max_batch_size=4, rates=(1.5, 20), color=False, quiet=True
    )


def test_help_has_names_types_texts_and_defaults_in_groups() -> None:
    _, output = run_command("--help")
    lines = [" ".join(line.strip("│ ").split()) for line in output.splitlines()]
    for expected in (
        "--server <choice> The server. [choices: fastapi, triton] [default: fastapi]",
        "--max-batch-size <int> Images per batch. [default: 8; large: 64]",
        "--rates <floats> Requests per second.",
        "--out <path> Folder [new]. [default: a new one]",
        "--color --monochrome <bool> Use colour. [default: color]",
        "--quiet --no-quiet <bool> Write less. [default: no-quiet; large: quiet]",
    ):
        assert expected in lines
    assert output.index("Options") < output.index("Servers") < output.index("--rates") < output.index("Output")


def test_hidden_flags_are_accepted_but_not_listed() -> None:
    assert "--server" not in run_command("--help", hidden=True)[1]
    assert run_command("--server", "triton", hidden=True)[0] == {"server": "triton", "times": 1}


def test_an_unknown_flag_is_a_usage_error() -> None:
    assert "No such option" in run_command("--max-batch", "4")[1]


def test_errors_name_the_flag() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"max_batch_size": "none", "server": "flask"})
    assert describe_errors(caught.value) == (
        "--server: Input should be 'fastapi' or 'triton'; "
        "--max-batch-size: Input should be a valid integer, unable to parse string as an integer"
    )
    with pytest.raises(ValidationError) as caught:
        Settings(quiet=True, max_batch_size=200)
    assert describe_errors(caught.value) == "--quiet needs a small batch"


def test_train_has_a_flag_with_help_for_every_setting(run: Any) -> None:
    code, output = run("train", "--help")
    assert code == 0
    for name, field in TrainSettings.model_fields.items():
        assert flag_name(name) in output
        assert field.description, name


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv = ['trident', 'train', '--help']\nfrom trident.app import main\n"
    code += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
