"""Rollouts on the three real servers, under requests whose answers are checked.

`ROLLOUTS=20 pytest -m integration tests/serving/stack/test_rollout.py` goes back and forth 20 times.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import DEFAULT_TOLERANCE
from bundle.store import Bundle, describe_file, read_bundle
from serving.clients.traffic import Traffic
from serving.stack.control import roll_out_bundle
from serving.stack.state import StackState
from tests.workplace import leftovers_of, now, processes_of, trident

pytestmark = pytest.mark.integration
ROLLOUTS = int(os.environ.get("ROLLOUTS", "2"))


@pytest.fixture(scope="module")
def versions(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """`digits:1`, and `digits:2` with other weights, in a working folder."""
    from tests.training.training_runs import train_digits
    from training.export import export_checkpoint

    folder = tmp_path_factory.mktemp("rollout")
    other = train_digits(folder / "run", epochs=1, seed=1).checkpoint
    root = folder / "artifacts" / "bundles"
    return [export_checkpoint(path, root, log=lambda _: None) for path in (checkpoint, other)]


@pytest.fixture(scope="module")
def folder(versions: list[Bundle]) -> Path:
    return versions[0].path.parents[3]


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[StackState]:
    trident("up", "--free-ports", "--model", "digits:1", cwd=folder, check=True)
    yield now(folder)
    trident("down", cwd=folder, check=True)
    assert processes_of(folder) == []
    assert leftovers_of(folder) == []


@pytest.mark.timeout(1800)
def test_back_and_forth_under_load(running: StackState, folder: Path, versions: list[Bundle]) -> None:
    with ExitStack() as stack:
        traffic = [
            stack.enter_context(Traffic(endpoint, versions, DEFAULT_TOLERANCE, protocol=protocol, pause_s=0.02))
            for endpoint in running.endpoints()
            for protocol in endpoint.protocols
        ]
        for number in range(ROLLOUTS):
            rollout = roll_out_bundle(versions[(number + 1) % 2], folder / "artifacts" / "stack")
            assert rollout.phase == "done", rollout
            assert set(rollout.steps.values()) == {"done"}
    for lane in traffic:
        assert not lane.record.failed, lane.record.failed[:3]
        assert not lane.record.wrong, lane.record.wrong[:3]
        assert not lane.record.unchecked, lane.record.unchecked[:3]
        assert set(lane.record.versions) == {1, 2}


def test_deploy_then_rollback_by_the_command_line(running: StackState, folder: Path, versions: list[Bundle]) -> None:
    served = read_bundle(now(folder).bundles[0]).manifest.version
    other = 3 - served
    assert trident("deploy", f"digits:{served}", cwd=folder).returncode == 1  # is served already
    done = trident("deploy", f"digits:{other}", "--live", cwd=folder, check=True)
    assert f"digits:{other} answers" in done.stdout
    assert "triton grpc" in done.stdout
    assert trident("verify", cwd=folder).returncode == 0
    back = trident("rollback", "--live", cwd=folder, check=True)  # the exit code is 1 if anything failed
    assert f"digits:{served} answers" in back.stdout
    for lane in ("fastapi http", "torchserve http", "torchserve grpc", "triton http", "triton grpc"):
        assert re.search(rf"{lane} +[1-9]\d* +0 +0 +1: [1-9]\d*, 2: [1-9]", back.stdout), back.stdout
    assert [path.name for path in now(folder).bundles] == [str(served)]


def test_golden_answers_that_do_not_come_true_switch_nothing(
    running: StackState, folder: Path, versions: list[Bundle]
) -> None:
    broken = falsified(versions[0], version=3)
    served = now(folder).bundles
    with ExitStack() as stack:
        traffic = [
            stack.enter_context(Traffic(endpoint, versions, DEFAULT_TOLERANCE, pause_s=0.02))
            for endpoint in running.endpoints()
        ]
        done = trident("deploy", broken.name, cwd=folder)
    assert done.returncode == 1
    assert "refused" in done.stdout
    assert now(folder).bundles == served
    for lane in traffic:
        assert not lane.record.failed, lane.record.failed[:3]
        assert not lane.record.wrong, lane.record.wrong[:3]
    assert trident("verify", cwd=folder).returncode == 0
    models = folder / "artifacts/stack/triton/model_repository"
    assert not [path.name for path in models.iterdir() if path.name.startswith("digits_v3")]


def test_a_server_that_dies_after_a_rollout_comes_back_with_the_new_version(
    running: StackState, folder: Path, versions: list[Bundle]
) -> None:
    served = read_bundle(now(folder).bundles[0]).manifest.version
    trident("deploy", f"digits:{3 - served}", cwd=folder, check=True)
    pids = {server: state.pid for server, state in now(folder).servers.items()}
    for pid in pids.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while any(state.pid == pids[name] or state.phase != "ready" for name, state in now(folder).servers.items()):
        assert time.monotonic() < deadline, now(folder).servers
        time.sleep(0.2)
    assert trident("verify", cwd=folder).returncode == 0


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
