"""What the supervisor repairs on the three real servers: parts of the shared stack are broken, and are whole afterwards."""

import os
import shutil
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from bundle.store import Bundle
from serving.server_api import call
from serving.stack.state import StackState
from tests.answers import golden_faults
from tests.waiting import wait_until
from tests.workplace import Run, endpoint_of, now, processes_of, triton_admin, until_ready

pytestmark = [pytest.mark.integration, pytest.mark.destructive]


def test_swapped_weights_are_found_and_replaced(
    stack: StackState, workplace: Path, other_weights: Bundle, digits: Bundle, run: Run
) -> None:
    """Triton's model gets another bundle; verify says which lanes and which image, and the supervisor starts Triton again
    with the right one.
    """
    served = workplace / "artifacts/stack/triton/model_repository/digits_v1_image/1"
    load = f"{endpoint_of(stack, 'triton').url}/v2/repository/models/digits_v1_image/load"
    before = now(workplace).servers["triton"]
    os.kill(stack.pid, signal.SIGSTOP)  # so that the supervisor does not come first
    try:
        shutil.copytree(other_weights.path, served / "bundle", dirs_exist_ok=True)
        os.utime(served / "model.py")
        assert before.pid is not None
        assert httpx.post(load, headers=triton_admin(before.pid), timeout=60).status_code == 200
        code, shown = run("verify", cwd=workplace)
    finally:
        os.kill(stack.pid, signal.SIGCONT)
    assert code == 1
    for lane in ("triton http", "triton grpc"):
        assert f"{lane}, golden probabilities: golden/00.png: probabilities differ" in shown
    assert "fastapi http, golden" not in shown
    assert "torchserve http, golden" not in shown
    until_ready(workplace, "triton", lambda state: state.pid != before.pid)
    assert golden_faults([endpoint_of(stack, "triton")], digits) == []


def test_a_dead_stub_of_triton_is_repaired_without_a_restart(
    stack: StackState, workplace: Path, digits: Bundle
) -> None:
    """Triton itself would fail every request to it from now on, and call itself ready."""
    before = now(workplace).servers["triton"]
    assert before.pid is not None
    stubs = [
        child
        for child in psutil.Process(before.pid).children(recursive=True)
        if any("/digits_v1_image/" in word for word in child.cmdline())
    ]
    stubs[0].kill()
    state = until_ready(workplace, "triton", lambda state: state.repairs > before.repairs)
    assert (state.pid, state.restarts) == (before.pid, before.restarts)
    assert golden_faults([endpoint_of(stack, "triton")], digits) == []


def test_a_killed_worker_of_torchserve_shows_and_comes_back(stack: StackState, workplace: Path, digits: Bundle) -> None:
    before = now(workplace).servers["torchserve"]
    assert before.pid is not None
    (worker,) = [
        child
        for child in psutil.Process(before.pid).children(recursive=True)
        if any("model_service_worker" in word for word in child.cmdline())
    ]
    worker.kill()
    wait_until(lambda: now(workplace).servers["torchserve"].phase == "degraded")
    state = until_ready(workplace, "torchserve")
    assert (state.pid, state.restarts) == (before.pid, before.restarts)
    assert golden_faults([endpoint_of(stack, "torchserve")], digits) == []


def test_a_worker_that_torchserve_gave_up_is_brought_back(
    stack: StackState, workplace: Path, digits: Bundle, run: Run
) -> None:
    before = now(workplace).servers["torchserve"]
    model = f"http://127.0.0.1:{stack.settings.ports.torchserve_management}/models/digits/1"
    call("PUT", f"{model}?min_worker=0&max_worker=0&synchronous=true")
    wait_until(lambda: now(workplace).servers["torchserve"].phase == "degraded")
    code, shown = run("status", cwd=workplace)
    assert code == 1
    assert "0 of 1 workers of digits:1" in shown
    state = until_ready(workplace, "torchserve", lambda state: state.repairs > before.repairs)
    assert (state.pid, state.repairs, state.restarts) == (before.pid, before.repairs + 1, before.restarts)
    assert golden_faults([endpoint_of(stack, "torchserve")], digits) == []


@pytest.mark.destructive(last=True)
def test_the_death_of_the_supervisor_ends_everything(workplace: Path, stack: StackState, run: Run) -> None:
    state = now(workplace)
    assert len(processes_of(workplace)) >= 4
    os.kill(state.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(workplace), 30, pause_s=0.2, shown=lambda: processes_of(workplace))
    assert run("status", cwd=workplace)[0] == 1
