"""A container's health check: every model gives the golden top-1 class. Standard library only, for it runs every few
seconds. It is the weaker probe: it compares neither probabilities nor versions, as `bundle.golden.compare` does.

    python -IS serving/container/top1_probe.py     (exit code 0: healthy)

The check restarts a server that stays broken. One that was ready and then fails FAILURES checks, with no golden answer in
between, is stopped, so that its container starts again: TorchServe without workers and Triton with a dead python model
would otherwise return errors for ever and call themselves healthy.

An overloaded server counts as healthy: one that refuses because its queue is full. Such a check neither counts as a
failure nor resets the count, since only a golden answer proves that everything works. A server that is overloaded for
MAX_OVERLOADED_CHECKS checks without a golden answer has failed too.

Each request may take `request_timeout_s` + 1, so that an overloaded server can refuse by itself. A hanging server is
asked to stop after 5 + 4 * 11 + 3 * 5 = 64 s at most (Docker's interval is 5 s, the default `request_timeout_s` 10 s;
72 s for TorchServe, whose queue is asked about too), and killed one interval later.
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
from typing import Any, Final, NamedTuple

FOLDER: Final = Path("/tmp/trident-health")  # noqa: S108 - the container's own, empty at every start
FAILURES: Final = 4
MAX_OVERLOADED_CHECKS: Final = 60
QUEUE_TIMEOUT_S: Final = 2.0
# In the body of a 503: the FastAPI service's problems, and the errors of Triton's python models.
OVERLOADED: Final = re.compile(
    rb"urn:trident:problem:(?:overloaded|unavailable)\b|\b(?:overloaded|deadline-exceeded): "
)
STUB: Final = b"triton_python_backend_stub"


class Failure(NamedTuple):
    """Why a check failed. `overloaded`: only because other requests wait as well."""

    message: str
    overloaded: bool = False


def ask(
    method: str, url: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """The response's status and body; 0 and the reason if there is none."""
    _, _, address, path = url.split("/", 3)
    try:
        with closing(HTTPConnection(address, timeout=timeout_s)) as connection:
            connection.request(method, f"/{path}", body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
    except (OSError, HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}".encode()


def check(canary: dict[str, Any]) -> Failure | None:
    """Send one golden request; None if its top-1 class is right."""
    image = base64.b64decode(canary["image"])
    status, body = ask("POST", canary["url"], canary["timeout_s"], image, canary["headers"])
    if status == 200:
        found = re.search(rb'"class_id":\s*(\d+)', body)
        if found is not None and int(found[1]) == canary["class_id"]:
            return None
        return Failure(f"wrong answer: {body[:200]!r}, golden: class {canary['class_id']}")
    message = f"{status or 'no response'}: {body[:200].decode(errors='replace')}"
    return Failure(message, is_overloaded(status, body, canary.get("queue")))


def is_overloaded(status: int, body: bytes, queue_url: str | None) -> bool:
    """Whether a request failed only because others wait as well.

    Args:
        status: 0: there was no response.
        queue_url: where TorchServe reports its workers and its queue. It has one 503 for a full queue and for no workers,
            and lets a request wait for any time.
    """
    if status in (429, 504) or (status == 503 and OVERLOADED.search(body)):
        return True
    if queue_url is None or not (status == 0 or (status == 503 and b"has no worker" in body)):
        return False
    try:
        (model,) = json.loads(ask("GET", queue_url, QUEUE_TIMEOUT_S)[1])
        works = any(worker["status"] == "READY" for worker in model["workers"])
        return bool(works and model["jobQueueStatus"]["pendingRequests"] > 0)
    except (ValueError, KeyError, TypeError):
        return False


def living_stubs() -> int:
    """How many processes run Triton's python models. The slots of images that a dead one did not finish stay taken, so
    Triton reports a full queue.
    """
    found = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += STUB in file.read_bytes()  # empty if it is dead
        except OSError:  # it has just ended
            continue
    return found


def read_count(file: Path) -> int:
    """The number in a file of ours; 0 if there is none, or its writer was killed."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def end_server(failures: int) -> None:
    """Ask the server to stop; if that did not help, kill everything (but process 1, the container's init)."""
    if failures == FAILURES:
        os.kill(1, signal.SIGTERM)
    else:
        os.kill(-1, signal.SIGKILL)


def main() -> int:
    """Check, and keep whether the server was ever ready and how often it failed since its last golden answer."""
    was_ready, count, overloaded, stubs = (FOLDER / name for name in ("ready", "failures", "overloaded", "stubs"))
    try:
        canaries = json.loads((FOLDER / "canaries.json").read_text())
    except (OSError, ValueError):
        print("the server is being configured")
        return 1
    ready, failures = was_ready.exists(), read_count(count)
    if ready:
        count.write_text(str(failures + 1))  # before asking: a check that is killed has failed
    if failures >= FAILURES:
        print("the server was asked to stop")
        end_server(failures + 1)
        return 1
    with ThreadPoolExecutor(len(canaries)) as pool:
        faults = [fault for fault in pool.map(check, canaries) if fault is not None]
    if not faults:
        was_ready.touch()
        count.unlink(missing_ok=True)
        overloaded.unlink(missing_ok=True)
        stubs.write_text(str(living_stubs()))
        return 0
    print("; ".join(fault.message for fault in faults))
    if not ready:
        return 1
    if all(fault.overloaded for fault in faults) and living_stubs() >= read_count(stubs):
        overloaded.write_text(str(read_count(overloaded) + 1))
        if read_count(overloaded) <= MAX_OVERLOADED_CHECKS:
            count.write_text(str(failures))
            return 0
    if failures + 1 >= FAILURES:
        end_server(failures + 1)
    return 1


if __name__ == "__main__":
    sys.exit(main())
