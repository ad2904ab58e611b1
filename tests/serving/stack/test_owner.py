"""A stack that belongs to a process ends with it, however that ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from bundle.store import Bundle
from tests.waiting import wait_until
from tests.workplace import leftovers_of, processes_of

OWNER = """
import sys, time
from pathlib import Path
from serving.settings import ServingSettings
from serving.stack.control import running_stack
with running_stack(ServingSettings(models=(sys.argv[1],), threads=1), ["fastapi"], Path("artifacts/stack")):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.integration
def test_a_stack_whose_owner_is_killed_ends(digits: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(digits.path)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert len(processes_of(tmp_path)) >= 3
        owner.kill()
    wait_until(lambda: not processes_of(tmp_path), pause_s=0.2, shown=lambda: processes_of(tmp_path))
    assert leftovers_of(tmp_path) == []
