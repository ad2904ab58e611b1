"""What many tests share: bundles from the real training and export, made once per run, and one stack of real servers."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.store import Bundle, read_bundle
from serving.clients.endpoint import SERVERS
from serving.settings import ServingSettings
from serving.stack.control import start_stack, stop_stack
from serving.stack.state import StackState
from serving.stack.timing import SupervisionTiming
from tests.once import made_once
from tests.workplace import Run, bundle_as, leftovers_of, processes_of

SHARED_STACK = ("test_servers", "test_bench", "test_repair", "test_rollout")  # files that use the fixture `stack`
LONG = ("test_models", "test_demo", "test_guarded")  # files whose integration tests take longest


def pytest_configure() -> None:
    """Give the tests an environment that does not depend on the caller's."""
    # A shell starts background jobs with SIGINT ignored, and so would be all that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("TRIDENT_")]:
        del os.environ[name]
    os.environ["COLUMNS"] = "300"  # tables are not cut
    if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are busy: more threads of one process would wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, run the tests of a file in one process, and those of the shared stack too."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "shared stack" if Path(file).stem in SHARED_STACK else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: those of the shared stack first, because they take longest, and of these the ones that break the
    stack at the end; then the other long files.
    """

    def position(item: pytest.Item) -> int:
        destructive = item.get_closest_marker("destructive")
        if destructive is not None:
            return 2 if destructive.kwargs.get("last") else 1
        if "compose" in item.path.parts:  # a stack of their own
            return 0
        if item.path.stem in SHARED_STACK:
            return 0
        return 3 if item.path.stem in LONG else 4

    items.sort(key=position)


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model after one epoch."""

    def train(folder: Path) -> None:
        from tests.training.training_runs import train_digits

        train_digits(folder, epochs=1)

    return made_once("checkpoint", train, pytestconfig, tmp_path_factory) / "best.pt"


@pytest.fixture(scope="session")
def digits(checkpoint: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`digits:1`."""
    return _exported("bundles", lambda _: checkpoint, pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def bundles(digits: Bundle) -> Path:
    """The root folder of the bundles."""
    return digits.path.parents[1]


@pytest.fixture(scope="session")
def other_weights(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle named `digits:1` like the other, with other weights."""

    def train(folder: Path) -> Path:
        from tests.training.training_runs import train_digits

        return train_digits(folder, epochs=1, seed=1).checkpoint

    return _exported("other-bundles", train, pytestconfig, tmp_path_factory)


def _exported(
    name: str, checkpoint_in: Callable[[Path], Path], config: pytest.Config, factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle of a checkpoint that is made, if need be, in a folder that does not last."""

    def export(folder: Path) -> None:
        from training.export import export_checkpoint

        export_checkpoint(checkpoint_in(factory.mktemp("run")), folder, log=lambda _: None)

    (manifest,) = made_once(name, export, config, factory).glob("*/*/manifest.json")
    return read_bundle(manifest.parent)


@pytest.fixture
def settings(digits: Bundle, bundles: Path) -> ServingSettings:
    """Settings that serve `digits:1` in one thread."""
    return ServingSettings(bundles=bundles, models=("digits:1",), workers=1, threads=1)


@pytest.fixture(scope="session")
def workplace(digits: Bundle, other_weights: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the shared stack: with `digits:1`, and `digits:2` with other weights."""
    folder = tmp_path_factory.mktemp("stack")
    for version, bundle in ((1, digits), (2, other_weights)):
        bundle_as(version, bundle, folder / "artifacts" / "bundles")
    return folder


@pytest.fixture(scope="session")
def stack(workplace: Path) -> Iterator[StackState]:
    """The three real servers with `digits:1`, for all tests that leave them as they are or repair them."""
    # Values that differ from the defaults, so that it shows whether a server took them.
    settings = ServingSettings(
        bundles=workplace / "artifacts" / "bundles",
        models=("digits:1",),
        threads=1,
        max_batch_size=4,
        queue_delay_ms=1.5,
        queue_size=255,
        request_timeout_s=9,
        max_body_bytes=9_000_000,
        max_image_pixels=20_000_000,
    )
    folder = workplace / "artifacts" / "stack"
    timing = SupervisionTiming(watch_s=0.5, canary_s=1.0, repair_after_s=15.0)
    yield start_stack(settings, SERVERS, folder, choose_ports=True, timing=timing)
    stop_stack(folder)
    assert processes_of(workplace) == []
    assert leftovers_of(workplace) == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Run a command in this process, in an empty folder: its exit code, and all that it printed."""
    from trident import app as front_door

    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, cwd: Path = tmp_path) -> tuple[int, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["trident", *arguments])
        with pytest.raises(SystemExit) as ended:
            front_door.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    yield run
    signal.signal(signal.SIGTERM, handler)
