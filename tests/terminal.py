"""The commands of the documentation, typed on a terminal."""

import os
import pty
import re
import subprocess
from pathlib import Path

from serving.settings import Ports
from serving.stack.state import StackState

ROOT = Path(__file__).resolve().parents[1]


def documented_curls(document: str, image: str) -> list[str]:
    """The calls of curl in a document's console blocks: those that send `image`, or nothing."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("curl ") and (f"@{image}" in line or "@" not in line)]


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
