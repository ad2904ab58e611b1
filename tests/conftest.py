"""Bundles that many tests share: made once per run, by the real training and export."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.settings import ServingSettings

Run = Callable[..., tuple[int, str]]


def pytest_configure() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, and so would be all that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIDENT_* variables of whoever runs the tests do not count."""
    for name in os.environ:
        if name.startswith("TRIDENT_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model after one epoch."""
    from tests.training.training_runs import train_digits

    return train_digits(tmp_path_factory.mktemp("run"), epochs=1).checkpoint


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder of the bundles."""
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="session")
def digits(checkpoint: Path, bundles: Path) -> Bundle:
    """`digits:1`."""
    from training.export import export_checkpoint

    return export_checkpoint(checkpoint, bundles, log=lambda _: None)


@pytest.fixture(scope="session")
def other_weights(digits: Bundle, bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle named `digits:1` like the other, with other weights."""
    from tests.training.training_runs import train_digits
    from training.export import export_checkpoint

    run = train_digits(tmp_path_factory.mktemp("run"), epochs=1, seed=1)
    return export_checkpoint(run.checkpoint, tmp_path_factory.mktemp("other-bundles"), log=lambda _: None)


@pytest.fixture
def settings(digits: Bundle, bundles: Path) -> ServingSettings:
    """Settings that serve `digits:1` in one thread."""
    return ServingSettings(bundles=bundles, models=("digits:1",), workers=1, threads=1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Run a command in this process, in an empty folder: its exit code, and all that it said."""
    from trident import app as front_door

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trident", *arguments])
        with pytest.raises(SystemExit) as ended:
            front_door.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    yield run
    signal.signal(signal.SIGTERM, handler)
