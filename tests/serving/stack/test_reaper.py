"""The reaper: what a killed supervisor leaves behind is killed, what was stopped in order is left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from serving.stack.reaper import Reaper
from tests.waiting import wait_until

# A group whose leader is killed while its child goes on; it prints the child's pid.
GROUP = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def group() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A leader and its child."""
    leader = subprocess.Popen([sys.executable, "-c", GROUP], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    yield leader, child
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    leader.stdout.close()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_children_of_a_killed_server_end_with_the_supervisor(group: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = group
    reaper = Reaper()
    reaper.watch(leader.pid)
    leader.kill()  # as the kernel does when the supervisor dies
    leader.wait()
    assert is_alive(child)
    reaper.close()
    wait_until(lambda: not is_alive(child), 10)


def test_a_group_that_has_ended_is_forgotten(group: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = group
    reaper = Reaper()
    reaper.watch(leader.pid)
    reaper.forget(leader.pid)
    reaper.close()
    assert is_alive(leader.pid)
    assert is_alive(child)


def test_a_reaper_that_was_killed_does_no_harm() -> None:
    reaper = Reaper()
    reaper._process.kill()
    reaper._process.wait()
    reaper.watch(1)
    reaper.close()
