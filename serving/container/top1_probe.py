"""A container's health: every model gives a golden answer. Standard library only, for it runs every few seconds.

    python -IS serving/container/top1_probe.py     (exit code 0: ready)

A server that was ready and then fails FAILURES times, with no golden answer in between, is ended, so that its container
is started anew: TorchServe without workers and Triton with a dead python model would else answer errors for ever, and
call themselves healthy. A server that refuses because its queue is full is well: that is no failure. Nor is it the end
of earlier ones, for only a golden answer proves that all of it works. And whoever is busy BUSY_CHECKS times without
one (of a server that drops all but a tenth of what comes, one check in ten still gets its answer) has failed, too.

Each question may take `request_timeout_s` + 1, so that a server under load can say so itself. A wedged one is asked to
end after 5 + 4 * 11 + 3 * 5 = 64 s at most (Docker's interval is 5 s, `request_timeout_s` 10 s by default; TorchServe's
queue is asked about too, which makes it 72 s), and killed one interval later.
"""

import base64
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path("/tmp/trident-health")  # noqa: S108 - the container's own, empty at every start
FAILURES: Final = 4
BUSY_CHECKS: Final = 60
QUEUE_TIMEOUT_S: Final = 2.0
# What our own code says beside 503: the FastAPI service's problems, and the errors of Triton's python models.
BUSY: Final = re.compile(rb"urn:trident:problem:(?:overloaded|unavailable)\b|\b(?:overloaded|deadline-exceeded): ")
STUB: Final = b"triton_python_backend_stub"


class Busy(str):
    """What a server says that has no place for the question."""


def ask(
    method: str, url: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """The answer's status and body; 0 and the reason if there is none."""
    _, _, address, path = url.split("/", 3)
    try:
        with closing(HTTPConnection(address, timeout=timeout_s)) as connection:
            connection.request(method, f"/{path}", body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
    except (OSError, HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}".encode()


def fault(canary: dict[str, Any]) -> str:
    """'' if the server gives the golden answer, else what is wrong; `Busy` if nothing is."""
    image = base64.b64decode(canary["image"])
    status, answer = ask("POST", canary["url"], canary["timeout_s"], image, canary["headers"])
    if status == 200:
        found = re.search(rb'"class_id":\s*(\d+)', answer)
        if found is not None and int(found[1]) == canary["class_id"]:
            return ""
        return f"wrong answer: {answer[:200]!r}, golden: class {canary['class_id']}"
    wrong = f"{status or 'no answer'}: {answer[:200].decode(errors='replace')}"
    return Busy(wrong) if is_busy(status, answer, canary.get("queue")) else wrong


def is_busy(status: int, answer: bytes, queue: str | None) -> bool:
    """Whether all that is wrong is that others wait as well.

    Args:
        queue: where TorchServe tells about its workers and its queue. It has one 503 for a full queue and for no
            workers, and lets a request wait for any time.
    """
    if status in (429, 504) or (status == 503 and BUSY.search(answer)):
        return True
    if queue is None or not (status == 0 or (status == 503 and b"has no worker" in answer)):
        return False
    try:
        (model,) = json.loads(ask("GET", queue, QUEUE_TIMEOUT_S)[1])
        works = any(worker["status"] == "READY" for worker in model["workers"])
        return works and model["jobQueueStatus"]["pendingRequests"] > 0
    except (ValueError, KeyError, TypeError):
        return False


def living_stubs() -> int:
    """How many processes run Triton's python models. The places of what a dead one did not finish stay taken, so that
    Triton says that its queue is full.
    """
    found = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += STUB in file.read_bytes()  # empty if it is dead
        except OSError:  # it has just ended
            continue
    return found


def number(file: Path) -> int:
    """What stands in a file of ours; 0 if there is none, or its writer was killed."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def end_server(failures: int) -> None:
    """Ask the server to end; if that did not help, kill everything (but not process 1, the container's init)."""
    if failures == FAILURES:
        os.kill(1, signal.SIGTERM)
    else:
        os.kill(-1, signal.SIGKILL)


def main() -> int:
    """Ask; remember whether it was ever ready, and how often it failed since its last golden answer."""
    was_ready, count, busy, stubs = (FOLDER / name for name in ("ready", "failures", "busy", "stubs"))
    try:
        canaries = json.loads((FOLDER / "canaries.json").read_text())
    except (OSError, ValueError):
        print("the server is being configured")
        return 1
    ready, failures = was_ready.exists(), number(count)
    if ready:
        count.write_text(str(failures + 1))  # before asking: a check that is killed has failed
    if failures >= FAILURES:
        print("the server was asked to end")
        end_server(failures + 1)
        return 1
    with ThreadPoolExecutor(len(canaries)) as pool:
        faults = [found for found in pool.map(fault, canaries) if found]
    if not faults:
        was_ready.touch()
        count.unlink(missing_ok=True)
        busy.unlink(missing_ok=True)
        stubs.write_text(str(living_stubs()))
        return 0
    print("; ".join(faults))
    if not ready:
        return 1
    if all(isinstance(found, Busy) for found in faults) and living_stubs() >= number(stubs):
        busy.write_text(str(number(busy) + 1))
        if number(busy) <= BUSY_CHECKS:
            count.write_text(str(failures))
            return 0
    if failures + 1 >= FAILURES:
        end_server(failures + 1)
    return 1


if __name__ == "__main__":
    sys.exit(main())
