"""The README is true: its commands exist, its tree is the tree, its links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from trident.app import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
LINES = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
INLINE = re.findall(r"`((?:trident|make|locust) [^`]*)`", README)


def commands(program: str) -> list[list[str]]:
    """The README's calls of a program, as argument lists."""
    return [shlex.split(line)[1:] for line in [*LINES, *INLINE] if line.split()[0] == program]


def test_the_first_commands_are_the_two() -> None:
    assert [line for line in LINES if line.startswith("make")][:2] == ["make demo", "make test"]


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", commands("trident"), ids=" ".join)
def test_trident_commands_parse(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    given = [str(ROOT / "README.md") if argument.endswith(".png") else argument for argument in arguments[1:]]
    command.make_context(arguments[0], given)


def test_locust_reads_the_flags_of_the_readme() -> None:
    (arguments,) = commands("locust")
    done = subprocess.run(
        [str(ROOT / ".venv/bin/locust"), *arguments, "--list"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "ClosedLoop" in done.stdout
    assert "OpenLoop" in done.stdout


def test_the_tree_is_the_tree() -> None:
    (tree,) = re.findall(r"\n\n(    README\.md.*?)\n\n", README, re.DOTALL)
    listed = {word.rstrip("/") for line in tree.splitlines() for word in line[4:28].split()}
    listed |= {"constraints-triton.txt", "constraints-peers.txt", "compose.gpu.yaml"}
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    present = {line.split("/")[0] for line in tracked.stdout.splitlines() if not line.startswith(".")}
    assert listed == present


def test_links_and_images_lead_somewhere() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_command_is_explained() -> None:
    group = typer.main.get_command(app)
    mentioned = {arguments[0] for arguments in commands("trident")}
    rare = {"bundles", "status", "report", "demo"}
    assert set(group.commands) - rare <= mentioned  # type: ignore[attr-defined]
