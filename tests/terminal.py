"""The commands of the documentation, typed on a terminal."""

import os
import pty
import re
import subprocess
from pathlib import Path

from serving.settings import Ports
from serving.stack.state import StackState

ROOT = Path(__file__).resolve().parents[1]


def documented_curls() -> list[str]:
    """The calls of curl in the documentation's console blocks that can be typed as they stand in a folder with an
    `image.png`: those to a server of the local stack that send that image, or nothing.
    """
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [line.partition(" #")[0].strip() for line in lines if line.startswith("curl ")]
    ports = "|".join(str(port) for port in Ports().model_dump().values())
    local = re.compile(rf"http://127\.0\.0\.1:({ports})/")
    sent = [command.partition("@")[2].partition(" ")[0] for command in found]
    return list(
        dict.fromkeys(
            command
            for command, file in zip(found, sent, strict=True)
            if local.search(command) and file in ("", "image.png") and "..." not in command
        )
    )


def typed(command: str, state: StackState, folder: Path) -> tuple[int, str]:
    """Exit code and output of a command that is typed in `folder`, with the ports of a running stack for the usual
    ones.
    """
    for name, usual in Ports().model_dump().items():
        command = command.replace(f"127.0.0.1:{usual}/", f"127.0.0.1:{getattr(state.settings.ports, name)}/")
    ours, theirs = pty.openpty()
    with subprocess.Popen(["sh", "-c", command], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        os.close(ours)
    return process.returncode, shown.decode(errors="replace")


def _read(terminal: int) -> bytes:
    """What is shown next; nothing at the end, which Linux tells as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
