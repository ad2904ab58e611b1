"""The commands in the documentation exist, with the flags that they are given."""

import subprocess
from pathlib import Path

import pytest
import typer

from tests.docs.pages import ROOT, TEXTS, calls, name
from trident.app import app

TRIDENT = [(path, arguments) for path in TEXTS for arguments in calls(path, "trident") if arguments]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_make_targets_exist(path: Path) -> None:
    targets = {argument for call in calls(path, "make") for argument in call if "=" not in argument}
    known = (ROOT / "Makefile").read_text()
    assert {target for target in targets if f"\n{target}:" not in known} <= {"-n"}


@pytest.mark.parametrize(
    ("path", "arguments"), TRIDENT, ids=[f"{name(path)} {' '.join(arguments)}" for path, arguments in TRIDENT]
)
def test_trident_commands_parse(path: Path, arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    if arguments[0].startswith("-"):
        assert arguments[0] == "--help"
        return
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    if len(arguments) == 1 or arguments[-1] == "--help":
        return  # the command's name in a sentence
    images = (".png", ".jpg")
    given = [str(ROOT / "README.md") if argument.endswith(images) else argument for argument in arguments[1:]]
    command.make_context(arguments[0], given)


def test_every_command_is_documented() -> None:
    group = typer.main.get_command(app)
    assert set(group.commands) <= {arguments[0] for _, arguments in TRIDENT} | {"demo"}  # type: ignore[attr-defined]


def test_locust_reads_the_flags() -> None:
    arguments = next(call for path in TEXTS for call in calls(path, "locust") if "-f" in call)
    done = subprocess.run(
        [str(ROOT / ".venv/bin/locust"), *arguments, "--list"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "ClosedLoop" in done.stdout
    assert "OpenLoop" in done.stdout
