"""Training with torchrun: several processes give the result of one, on one or two nodes, also if one is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.training.test_resume import equal, last_tensors, logged_values
from tests.workplace import trident
from training.checkpoint import load_checkpoint, state_files

pytestmark = pytest.mark.integration

TRAINING = ["-m", "trident", "train", "--model", "simple_cnn", "--dropout", "0", "--image-size", "8", "--epochs", "2"]
TRAINING += ["--batch-size", "96", "--checkpoint-steps", "3", "--device", "cpu", "--resume"]


def torchrun(cwd: Path, run_dir: str, *flags: str) -> subprocess.Popen[str]:
    """Start an agent with its processes, one thread each; their output goes to `run_dir`.log."""
    command = [sys.executable, "-m", "torch.distributed.run", *flags, *TRAINING, "--run-dir", run_dir]
    with (cwd / f"{run_dir}.log").open("a") as log:
        # Without the second variable, restarted processes find the addresses of killed ones in the agent's store.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def wait_for_success(agent: subprocess.Popen[str], log: Path) -> None:
    try:
        assert agent.wait(timeout=300) == 0, log.read_text()
    finally:
        agent.kill()
        agent.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes on one node."""
    folder = tmp_path_factory.mktemp("two")
    wait_for_success(torchrun(folder, "run", "--standalone", "--nproc-per-node", "2"), folder / "run.log")
    assert (folder / "run.log").read_text().count("test accuracy") == 1  # only the leader writes output
    return folder / "run"


def test_two_processes_give_the_result_of_one(two: Path, tmp_path: Path) -> None:
    """The global batches are the same, so gradients differ only by the order of floating-point sums."""
    trident(*TRAINING[2:-1], "--run-dir", "one", cwd=tmp_path, check=True)
    one, both = (load_checkpoint(folder / "best.pt") for folder in (tmp_path / "one", two))
    for name in one.weights:
        assert torch.allclose(one.weights[name], both.weights[name], atol=2e-4), name
    for first, second in zip(logged_values(tmp_path / "one"), logged_values(two), strict=True):
        assert first == pytest.approx(second, abs=2e-3)
    assert one.test_accuracy == pytest.approx(both.test_accuracy, abs=0.01)


@pytest.mark.slow
def test_a_killed_process_is_restarted_without_changing_the_result(two: Path, tmp_path: Path) -> None:
    agent = torchrun(tmp_path, "run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    while not state_files(tmp_path / "run" / "checkpoints"):
        assert agent.poll() is None, (tmp_path / "run.log").read_text()
        time.sleep(0.002)
    for worker in psutil.Process(agent.pid).children():
        if worker.environ().get("RANK") == "0":  # the process that writes the checkpoints
            worker.send_signal(signal.SIGKILL)
    wait_for_success(agent, tmp_path / "run.log")
    assert "resumed run after step" in (tmp_path / "run.log").read_text()
    assert equal(last_tensors(tmp_path / "run"), last_tensors(two))
    assert logged_values(tmp_path / "run") == logged_values(two)


@pytest.mark.slow
def test_two_nodes_give_the_result_of_two_processes_on_one(two: Path, tmp_path: Path) -> None:
    """Two agents that connect through a port, as on two machines with a shared disk."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    nodes = [torchrun(tmp_path, "run", *flags, "--local-addr", "127.0.0.1") for _ in range(2)]
    for node in nodes:
        wait_for_success(node, tmp_path / "run.log")
    assert equal(last_tensors(tmp_path / "run"), last_tensors(two))
    assert logged_values(tmp_path / "run") == logged_values(two)
