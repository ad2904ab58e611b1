"""The examples do what their docstrings say."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bundle.store import Bundle, read_bundle
from serving.settings import ServingSettings
from serving.stack.ports import free_ports
from tests.serving.fastapi_server.live_service import live_service
from tests.workplace import trident

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGE = Path(__file__).resolve().parents[1] / "digit.png"


def example(name: str, *arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_how_to_run_them(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{path.name}" in text.split('"""')[1]


@pytest.mark.integration
def test_predict_with_the_client(settings: ServingSettings, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with live_service(settings) as live:
        done = example("predict.py", str(IMAGE), str(bad), "--url", live.url, cwd=tmp_path, code=1)
    good, refused = done.stdout.splitlines()
    assert good.startswith(f"{IMAGE}: digits:1: ")
    assert good.count("%") == 3
    assert refused.startswith(f"{bad}: HTTP 415: ")


@contextmanager
def own_server(bundle: Bundle, port: int) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, EXAMPLES / "own_server.py", str(bundle.path), "--port", str(port)])
    try:
        transport = httpx.HTTPTransport(retries=12)  # connection attempts, with growing pauses
        with httpx.Client(transport=transport) as client:
            client.get(f"http://127.0.0.1:{port}/openapi.json", timeout=30).raise_for_status()
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.integration
def test_benchmark_of_ones_own_server(digits: Bundle, tmp_path: Path) -> None:
    quick = (
        "--scenario",
        "single-stream",
        "--duration-s",
        "0.5",
        "--rounds",
        "1",
        "--warmup-s",
        "0.1",
        "--initial-warmup-s",
        "0",
    )
    with own_server(digits, free_ports().fastapi) as url:
        trident(
            *("bench", "--model", str(digits.path), "--target", f"mine={url}", *quick, "--out", "result"),
            cwd=tmp_path,
            check=True,
        )
    report = (tmp_path / "result" / "report.md").read_text()
    assert "| mine |" in report


@pytest.mark.integration
def test_an_architecture_of_ones_own(tmp_path: Path) -> None:
    example("own_architecture.py", "train", "--model", "tiny", "--name", "tiny", "--epochs", "1", cwd=tmp_path)
    example("own_architecture.py", "export", "--name", "tiny", cwd=tmp_path)
    manifest = read_bundle(tmp_path / "artifacts" / "bundles" / "tiny" / "1").manifest
    assert manifest.origin.architecture == "tiny"
