"""Rollouts on the three real servers, under requests whose answers are checked."""

import json
import os
import re
import shutil
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from bundle.manifest import DEFAULT_TOLERANCE
from bundle.store import Bundle, describe_file, read_bundle
from serving.clients.endpoint import SERVERS
from serving.clients.traffic import Traffic
from serving.stack.control import roll_out_bundle
from serving.stack.state import ServerState, StackState
from tests.answers import golden_faults
from tests.workplace import Run, now, trident, until_ready

pytestmark = [pytest.mark.integration, pytest.mark.destructive]


@pytest.fixture(scope="module")
def versions(workplace: Path) -> list[Bundle]:
    """`digits:1`, and `digits:2` with other weights."""
    return [read_bundle(workplace / "artifacts/bundles/digits" / str(version)) for version in (1, 2)]


@pytest.mark.parametrize("rollouts", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_back_and_forth_under_load(stack: StackState, workplace: Path, versions: list[Bundle], rollouts: int) -> None:
    with ExitStack() as requests:
        traffic = [
            requests.enter_context(Traffic(endpoint, versions, DEFAULT_TOLERANCE, protocol=protocol, pause_s=0.02))
            for endpoint in stack.endpoints()
            for protocol in endpoint.protocols
        ]
        for number in range(rollouts):
            rollout = roll_out_bundle(versions[(number + 1) % 2], workplace / "artifacts" / "stack")
            assert rollout.phase == "done", rollout
            assert set(rollout.steps.values()) == {"done"}
    for lane in traffic:
        assert not lane.record.failed, lane.record.failed[:3]
        assert not lane.record.wrong, lane.record.wrong[:3]
        assert not lane.record.unchecked, lane.record.unchecked[:3]
        assert set(lane.record.versions) == {1, 2}


def test_deploy_then_rollback_by_the_command_line(
    stack: StackState, workplace: Path, versions: list[Bundle], run: Run
) -> None:
    served = read_bundle(now(workplace).bundles[0]).manifest.version
    other = 3 - served
    assert run("deploy", f"digits:{served}", cwd=workplace)[0] == 1  # is served already
    done = trident("deploy", f"digits:{other}", "--live", cwd=workplace, check=True)
    assert f"digits:{other} answers" in done.stdout
    assert "triton grpc" in done.stdout
    assert golden_faults(stack.endpoints(), versions[other - 1]) == []
    back = trident("rollback", "--live", cwd=workplace, check=True)  # the exit code is 1 if anything failed
    assert f"digits:{served} answers" in back.stdout
    for lane in ("fastapi http", "torchserve http", "torchserve grpc", "triton http", "triton grpc"):
        assert re.search(rf"{lane} +[1-9]\d* +0 +0 +1: [1-9]\d*, 2: [1-9]", back.stdout), back.stdout
    assert [path.name for path in now(workplace).bundles] == [str(served)]


def test_golden_answers_that_do_not_come_true_switch_nothing(
    stack: StackState, workplace: Path, versions: list[Bundle], run: Run
) -> None:
    broken = falsified(versions[0], version=3)
    served = now(workplace).bundles
    with ExitStack() as requests:
        traffic = [
            requests.enter_context(Traffic(endpoint, versions, DEFAULT_TOLERANCE, pause_s=0.02))
            for endpoint in stack.endpoints()
        ]
        code, shown = run("deploy", broken.name, cwd=workplace)
    assert code == 1
    assert "refused" in shown
    assert now(workplace).bundles == served
    for lane in traffic:
        assert not lane.record.failed, lane.record.failed[:3]
        assert not lane.record.wrong, lane.record.wrong[:3]
    models = workplace / "artifacts/stack/triton/model_repository"
    assert not [path.name for path in models.iterdir() if path.name.startswith("digits_v3")]


def test_killed_servers_come_back_with_the_version_that_was_rolled_out(
    stack: StackState, workplace: Path, run: Run
) -> None:
    served = read_bundle(now(workplace).bundles[0]).manifest.version
    assert run("deploy", f"digits:{3 - served}", cwd=workplace)[0] == 0
    before = now(workplace).servers
    families = []
    for state in before.values():
        assert state.pid is not None
        families += [psutil.Process(state.pid), *psutil.Process(state.pid).children(recursive=True)]
        os.kill(state.pid, signal.SIGKILL)
    for server in SERVERS:
        assert until_ready(workplace, server, also=partial(is_new, before[server])).restarts >= 1
    assert not [process for process in families if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert run("verify", cwd=workplace)[0] == 0


def is_new(before: ServerState, state: ServerState) -> bool:
    return state.pid != before.pid


def falsified(bundle: Bundle, version: int) -> Bundle:
    """A copy under another version, whose golden probabilities are not the model's."""
    place = bundle.path.parent / str(version)
    shutil.copytree(bundle.path, place)
    probabilities = place / bundle.manifest.golden.probabilities.file
    np.save(probabilities, np.roll(np.load(probabilities), 1, axis=1))
    manifest = json.loads((place / "manifest.json").read_text()) | {"version": version}
    manifest["golden"]["probabilities"] = describe_file(probabilities, place).model_dump()
    (place / "manifest.json").write_text(json.dumps(manifest))
    return read_bundle(place)
