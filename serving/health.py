"""A container's health: every model gives a golden answer. Standard library only, for it runs every few seconds.

    python -IS serving/health.py     (exit code 0: ready)

A server that was ready and then fails FAILURES times in a row is ended, so that its container is started anew: TorchServe
without workers and Triton with a dead python model would else answer errors for ever, and call themselves healthy.
"""

import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path("/tmp/trident-health")  # noqa: S108 - the container's own, empty at every start
FAILURES: Final = 4
TIMEOUT_S: Final = 5


def fault(canary: dict[str, Any]) -> str:
    """'' if the server gives the golden answer, else what is wrong."""
    request = urllib.request.Request(  # noqa: S310 - our own address
        canary["url"], Path(canary["picture"]).read_bytes(), canary["headers"], method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            answer = response.read()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    found = re.search(rb'"class_id":\s*(\d+)', answer)
    if found is None or int(found[1]) != canary["class_id"]:
        return f"wrong answer: {answer[:200]!r}, golden: class {canary['class_id']}"
    return ""


def end_server(failures: int) -> None:
    """Ask the server to end; if that did not help, kill everything (but not process 1, the container's init)."""
    if failures == FAILURES:
        os.kill(1, signal.SIGTERM)
    else:
        os.kill(-1, signal.SIGKILL)


def main() -> int:
    """Ask; remember whether it was ever ready, and how often it failed since."""
    was_ready, count = FOLDER / "ready", FOLDER / "failures"
    try:
        canaries = json.loads((FOLDER / "canaries.json").read_text())
    except (OSError, ValueError):
        print("the server is being configured")
        return 1
    faults = [found for found in map(fault, canaries) if found]
    if not faults:
        was_ready.touch()
        count.unlink(missing_ok=True)
        return 0
    print("; ".join(faults))
    if was_ready.exists():
        failures = int(count.read_text()) + 1 if count.exists() else 1
        count.write_text(str(failures))
        if failures >= FAILURES:
            end_server(failures)
    return 1


if __name__ == "__main__":
    sys.exit(main())
