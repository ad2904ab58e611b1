"""The compose files without an engine: valid for CPU and GPU, documented, and safe by their letter."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from serving.clients.endpoint import SERVERS
from tests.compose.composed import ROOT

COMPOSE = (ROOT / "compose.yaml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()


def test_every_variable_is_documented_with_its_default() -> None:
    used: dict[str, str] = {}
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", COMPOSE):
        assert used.setdefault(name, default) == default, f"{name} has two defaults"
    documented = dict(re.findall(r"^# ([A-Z_]+)=(\S*)", EXAMPLE, re.MULTILINE))
    stand_ins = {
        "API_KEYS_FILE",
        "TLS_CERTIFICATE_FILE",
        "TLS_KEY_FILE",
        "TRAIN_DATA",
    }  # an empty file, an empty volume
    assert used.keys() == documented.keys()
    assert {name: default for name, default in used.items() if name not in stand_ins} == {
        name: default for name, default in documented.items() if name not in stand_ins
    }


def test_no_default_user_and_no_default_privileges() -> None:
    for name, service in yaml.safe_load(COMPOSE)["services"].items():
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name


def test_dockerfiles_pin_their_bases_and_pull_no_frontend() -> None:
    files = sorted((ROOT / "docker").glob("*.Dockerfile"))
    assert {file.name.partition(".")[0] for file in files} == {"training", "loadtest", *SERVERS}
    for file in files:
        text = file.read_text()
        assert not re.search(r"^#\s*syntax", text, re.MULTILINE), file.name
        for base in re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE):
            assert re.search(r":\d[\w.-]+$", base), f"{file.name}: {base} is not pinned"
            assert base in EXAMPLE, f"{file.name}: {base} is not the documented one"
        if "onnxruntime" in text or "cpu" in text:
            assert "ORT_DISABLE_TELEMETRY=1" in text, file.name
    shared = {
        re.findall(
            r"(?ms)^ARG PYTHON_IMAGE.*?(?=^# --- other requirements)", (ROOT / f"docker/{name}.Dockerfile").read_text()
        )[0]
        for name in ("training", "torchserve")
    }
    assert len(shared) == 1, "the lines of the layer that two images share differ"


@pytest.mark.docker
@pytest.mark.parametrize("profile", ["fastapi", "torchserve", "triton", "side-by-side"])
def test_the_gpu_configuration(profile: str) -> None:
    config = resolved("-f", "compose.yaml", "-f", "compose.gpu.yaml", "--profile", profile)
    servers = [name for name in SERVERS if name in config["services"]]
    assert servers == (list(SERVERS) if profile == "side-by-side" else [profile])
    for server in servers:
        service = config["services"][server]
        assert service["environment"]["TRIDENT_DEVICE"] == "cuda"
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.docker
def test_the_cpu_configuration() -> None:
    services = resolved("-f", "compose.yaml", "--profile", "loadtest", "--profile", "locust")["services"]
    assert set(services) == set(yaml.safe_load(COMPOSE)["services"])
    for server in SERVERS:
        assert set(services[server]["networks"]) == {"inference", "management"}
        assert "ports" not in services[server]


def resolved(*arguments: str) -> dict[str, Any]:
    """What Compose makes of the files; without an .env of whoever runs this."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command")
    command = ["docker", "compose", "--env-file", os.devnull, *arguments, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed
