"""The composed stack under a project name of its own, on free ports, driven as its user drives it: by `docker compose`."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "trident-test"
PATHS = {
    "fastapi": "/predict",
    "torchserve": "/torchserve/predictions/digits",
    "triton": "/triton/v2/models/digits/infer",
}
BINARY = {"content-type": "application/octet-stream", "inference-header-content-length": "0"}
IMAGE = (ROOT / "tests/digit.png").read_bytes()


def engine_fault() -> str:
    """Why nothing can be composed here; '' if it can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if done.returncode:
        return f"no Docker engine answers: {done.stderr.strip()[-200:]}"
    return (
        "" if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode else "no Compose v2"
    )


def has_image(image: str) -> bool:
    """Whether an image is here or can be had."""
    return any(
        not subprocess.run(["docker", *verb, image], capture_output=True).returncode for verb in (["inspect"], ["pull"])
    )


wait_for = partial(wait_until, timeout_s=120, pause_s=0.25)


class Composed:
    """One project."""

    def __init__(self, folder: Path) -> None:
        ports = {name: str(free_port()) for name in ("EDGE_PORT", "EDGE_TLS_PORT", "PROMETHEUS_PORT", "LOCUST_PORT")}
        self.environment = (
            os.environ
            | ports
            | {
                "TRAIN_ARGUMENTS": "--epochs 1",
                "EDGE_CONNECTIONS": "32",
                "EDGE_BODY_TIMEOUT_S": "3",
            }
        )
        self.files = [ROOT / "compose.yaml"]
        self.grafana = has_image(self.config()["services"]["grafana"]["image"])
        if not self.grafana:  # its image is public; everything else is made of images that are here
            without = folder / "without-grafana.yaml"
            without.write_text("services: {grafana: {profiles: [unobtainable]}}\n")
            self.files.append(without)
        self.edge = f"http://127.0.0.1:{ports['EDGE_PORT']}"
        self.prometheus = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"
        self.locust = f"http://127.0.0.1:{ports['LOCUST_PORT']}"

    def __call__(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run `docker compose ARGUMENTS`; its output."""
        files = [part for file in self.files for part in ("-f", str(file))]
        done = subprocess.run(
            ["docker", "compose", "-p", PROJECT, "--project-directory", str(ROOT), *files, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    def config(self) -> dict[str, Any]:
        """The configuration in force."""
        parsed: dict[str, Any] = json.loads(self("config", "--format", "json"))
        return parsed

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows about the service's container."""
        name = f"{PROJECT}-{service}-1"
        found: dict[str, Any] = json.loads(subprocess.check_output(["docker", "inspect", name]))[0]
        return found

    def until_healthy(self, service: str, timeout_s: float = 180) -> None:
        """Wait until the service's container is healthy."""
        wait_until(
            lambda: self.container(service)["State"].get("Health", {}).get("Status") == "healthy",
            timeout_s,
            pause_s=0.2,
            shown=lambda: self("logs", "--tail", "50", service),
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        response = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression})
        assert response.status_code == 200, f"{expression}: {response.text}"
        result: list[dict[str, Any]] = response.json()["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """The sum of what Prometheus answers; 0 if it knows nothing."""
        return sum(float(result["value"][1]) for result in self.query(expression))

    def kill(self, server: str) -> None:
        """SIGKILL to all that runs in the container, as the kernel does when memory is short. (After `docker kill`, the engine
        takes the end for its operator's wish, and restarts nothing.)
        """
        self("exec", "-T", server, "python3", "-c", "import os; os.kill(-1, 9)", check=False)

    def leftovers(self) -> list[str]:
        """Containers, volumes and networks of the project."""
        label = f"label=com.docker.compose.project={PROJECT}"
        kinds = (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"])
        return [
            line
            for kind in kinds
            for line in subprocess.check_output(["docker", *kind, "--filter", label], text=True).split()
        ]


@contextmanager
def composed(folder: Path) -> Iterator[Composed]:
    """The stack from nothing, healthy; at the end it is removed, and nothing of it may be left."""
    stack = Composed(folder)
    stack("down", "-v", "--remove-orphans")
    try:
        stack("--profile", "loadtest", "--profile", "locust", "build", timeout=2400)
        stack("up", "-d", "--wait", timeout=600)
        yield stack
    finally:
        stack("--profile", "locust", "down", "-v")
        assert stack.leftovers() == []


def ask(
    edge: httpx.Client, server: str, content: bytes = IMAGE, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """A prediction by one of the servers, asked for at the edge."""
    return edge.post(PATHS[server], content=content, headers=BINARY | dict(headers or {}))


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
