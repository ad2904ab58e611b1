import os
import re
import tomllib
from pathlib import Path

import pytest

from serving.errors import DeploymentError
from serving.settings import REPOSITORY, ServingSettings, available_cores, load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_command_line_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().max_batch_size == 8
    Path("trident.toml").write_text("max_batch_size = 2\nqueue_size = 3\nworkers = 4\n[ports]\ntriton = 9500\n")
    monkeypatch.setenv("TRIDENT_QUEUE_SIZE", "30")
    monkeypatch.setenv("TRIDENT_WORKERS", "5")
    settings = load_settings(workers=6, threads=None)
    assert (settings.max_batch_size, settings.queue_size, settings.workers) == (2, 30, 6)
    assert settings.ports.triton == 9500
    assert settings.ports.fastapi == 8000


def test_nested_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_PORTS__FASTAPI", "9000")
    assert load_settings().ports.fastapi == 9000


def test_unknown_keys_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trident.toml").write_text("max_bach_size = 2\n")
    with pytest.raises(DeploymentError, match="max_bach_size"):
        load_settings()
    Path("trident.toml").unlink()
    monkeypatch.setenv("TRIDENT_MAX_BACH_SIZE", "2")
    with pytest.raises(DeploymentError, match="TRIDENT_MAX_BACH_SIZE"):
        load_settings()


def test_the_cores_of_the_servers_are_divided_among_the_workers() -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    assert ServingSettings(cores=cores[:1]).threads_per_worker == 1
    assert ServingSettings().threads_per_worker == available_cores()
    assert ServingSettings(workers=256).threads_per_worker == 1
    assert ServingSettings(cores=cores[:1], threads=3).threads_per_worker == 3


@pytest.mark.parametrize(
    ("name", "value"), [("workers", 0), ("runtime", "tensorflow"), ("queue_delay_ms", -1), ("device", "tpu")]
)
def test_bad_values_are_refused_with_their_key(name: str, value: object) -> None:
    with pytest.raises(DeploymentError, match=name):
        load_settings(**{name: value})


def test_api_keys_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first\n\nsecond\n")
    monkeypatch.setenv("TRIDENT_API_KEYS_FILE", "keys")
    assert [key.get_secret_value() for key in load_settings().api_keys] == ["first", "second"]
    assert load_settings(api_keys=["given"]).client_key == "given"
    (tmp_path / "keys").write_text("")  # a secret that nobody set
    assert load_settings().client_key is None
    (tmp_path / "keys").unlink()
    with pytest.raises(DeploymentError, match="api_keys_file"):
        load_settings()


def test_environment_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(models=("digits:1", "b"), queue_delay_ms=2.5, cores=(0, 1), bundles=Path("/x y"))
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_threads_follow_the_cores() -> None:
    assert load_settings(threads=3).threads_per_worker == 3
    assert load_settings().threads_per_worker == available_cores()
    assert load_settings(workers=256).threads_per_worker == 1


def test_the_file_in_the_repository_shows_every_default() -> None:
    text = (REPOSITORY / "trident.toml").read_text()
    assert tomllib.loads(text) == {}
    shown = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE))
    defaults = ServingSettings().model_dump(mode="json")
    del defaults["triton_python"], defaults["triton_home"], defaults["api_keys_file"]  # where things lie
    assert shown == defaults
