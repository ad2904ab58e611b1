"""Expensive files that are made once and kept in pytest's cache, for all processes and for the next runs."""

import fcntl
import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What the files depend on. A change to any of these makes them again.
_SOURCES = ("bundle", "training", "tests/training/training_runs.py", "tests/conftest.py", "constraints.txt")


def made_once(
    name: str, make: Callable[[Path], object], config: pytest.Config, factory: pytest.TempPathFactory
) -> Path:
    """A private copy of the folder that `make` has filled. The first process makes it; the others wait and copy."""
    cache = _cache(config) / _digest()
    original = cache / name
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            draft = original.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            make(draft)
            draft.rename(original)
    return Path(shutil.copytree(original, factory.mktemp(name) / name))


def _cache(config: pytest.Config) -> Path:
    """The folder of all versions. Those of other sources are removed."""
    assert config.cache is not None
    cache = config.cache.mkdir("made-once")
    (cache / _digest()).mkdir(exist_ok=True)
    for other in cache.iterdir():
        if other.name != _digest():
            shutil.rmtree(other, ignore_errors=True)
    return cache


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256()
    for source in _SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
