import os
import re
import tomllib
from pathlib import Path

import pytest

from bundle.errors import DeploymentError
from serving.settings import REPOSITORY, ServingSettings, available_cores, load_settings
from serving.stack.ports import free_ports
from serving.tuning import DEFAULTS, Tuning


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_command_line_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().queue_size == 256
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
    assert ServingSettings(cores=cores[:1]).of("triton").threads == 1
    assert ServingSettings().of("triton").threads == available_cores()
    assert ServingSettings(workers=256).of("triton").threads == 1
    assert ServingSettings(cores=cores[:1], threads=3).of("triton").threads == 3
    assert ServingSettings(triton=Tuning(threads=5), threads=3).of("triton").threads == 5


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1), (16, 4, 4)])
def test_fastapi_has_a_process_per_core_up_to_four(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.settings.available_cores", lambda: cores)
    settings = load_settings()
    fastapi, triton = settings.of("fastapi"), settings.of("triton")
    assert (fastapi.workers, fastapi.threads) == (workers, threads)
    assert (triton.workers, triton.threads) == (1, cores)
    on_gpu = load_settings(device="cuda").of("fastapi")
    assert (on_gpu.workers, on_gpu.threads) == (1, cores)


def test_own_value_over_common_value_over_the_servers_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().of("torchserve").max_batch_size == DEFAULTS["torchserve"].max_batch_size
    Path("trident.toml").write_text("max_batch_size = 4\n[torchserve]\nworkers = 3\nqueue_delay_ms = 5\n")
    monkeypatch.setenv("TRIDENT_WORKERS", "2")
    monkeypatch.setenv("TRIDENT_TORCHSERVE__QUEUE_DELAY_MS", "6")
    settings = load_settings()
    torchserve, triton = settings.of("torchserve"), settings.of("triton")
    assert (torchserve.workers, torchserve.max_batch_size, torchserve.queue_delay_ms) == (3, 4, 6)
    assert (triton.workers, triton.max_batch_size, triton.queue_delay_ms) == (2, 4, 0)
    assert torchserve.of("torchserve") == torchserve
    with pytest.raises(DeploymentError, match=r"triton\.worker"):
        load_settings(triton={"worker": 1})


def test_the_command_line_wins_over_a_servers_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trident.toml").write_text("[torchserve]\nworkers = 3\nthreads = 1\n")
    monkeypatch.setenv("TRIDENT_TRITON__WORKERS", "4")
    settings = load_settings(workers=2)
    assert [settings.of(server).workers for server in ("fastapi", "torchserve", "triton")] == [2, 2, 2]
    assert settings.of("torchserve").threads == 1


def test_a_child_has_the_settings_it_is_given_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_FASTAPI__WORKERS", "2")
    monkeypatch.setenv("TRIDENT_PORTS__TRITON", "9500")
    settings = load_settings().model_copy(update={"fastapi": Tuning(workers=1), "ports": free_ports()})
    environment = settings.child_environment()
    monkeypatch.setattr(os, "environ", environment)
    child = load_settings()
    assert child.of("fastapi").workers == 1
    assert child.ports == settings.ports


def test_what_is_resolved_does_not_depend_on_the_readers_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.settings.available_cores", lambda: 2)
    resolved = load_settings().resolved()
    monkeypatch.setattr("serving.settings.available_cores", lambda: 16)
    for server in DEFAULTS:
        assert (resolved.of(server).workers, resolved.of(server).threads) == ((2, 1) if server == "fastapi" else (1, 2))


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_MAX_BATCH_SIZE", "")
    assert load_settings().max_batch_size is None


@pytest.mark.parametrize(
    ("name", "value"), [("workers", -1), ("runtime", "tensorflow"), ("queue_delay_ms", -1), ("device", "tpu")]
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


def test_a_server_gets_its_own_settings_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    torchserve = load_settings(workers=2, torchserve={"threads": 3}).of("torchserve")
    Path("trident.toml").write_text("[torchserve]\nthreads = 7\n")  # changed since
    for name, value in torchserve.as_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().of("torchserve") == torchserve


def test_the_file_in_the_repository_shows_every_default() -> None:
    text = (REPOSITORY / "trident.toml").read_text()
    assert tomllib.loads(text) == {}
    shown = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE))
    defaults = ServingSettings().model_dump(mode="json") | {
        server: tuning.model_dump() for server, tuning in DEFAULTS.items()
    }
    del defaults["triton_python"], defaults["triton_home"], defaults["api_keys_file"]  # where things lie
    for name in Tuning.model_fields:  # unset
        del defaults[name]
    assert shown == defaults
