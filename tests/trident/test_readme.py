"""The README's map is the repository, and its first commands are the two that anyone needs."""

import re
import subprocess

from tests.docs.pages import ROOT, console_lines

README = ROOT / "README.md"


def test_the_first_commands_are_the_two() -> None:
    assert [line for line in console_lines(README) if line.startswith("make")] == ["make demo", "make test"]


def test_the_map_names_every_folder() -> None:
    (drawn,) = re.findall(r"^    bundle/.*?(?=\n\n)", README.read_text(), re.MULTILINE | re.DOTALL)
    listed = {word for line in drawn.splitlines() for word in line[4:23].split()}
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {f"{line.split('/')[0]}/" for line in tracked.stdout.splitlines() if "/" in line}
    assert {folder for folder in folders if not folder.startswith(".")} == listed - {"trident.toml"}
    assert "trident.toml" in listed
