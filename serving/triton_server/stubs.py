"""The stub processes in which Triton runs python models."""

from pathlib import Path
from typing import Final

_STUB: Final = "triton_python_backend_stub"


def living_stubs(pid: int, repository: Path) -> dict[str, int]:
    """Living stubs of the server `pid`, by model. A stub's command line has its model's path, `<repository>/<model>/...`."""
    import psutil  # only supervisors have it; the container of Triton does not

    found: dict[str, int] = {}
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return found
    for child in children:
        try:
            words = child.cmdline()
            if words and words[0].endswith(_STUB) and child.status() != psutil.STATUS_ZOMBIE:
                name = Path(words[1]).relative_to(repository).parts[0]
                found[name] = found.get(name, 0) + 1
        except (psutil.Error, ValueError, IndexError):
            continue
    return found


def expected_stubs(repository: Path, *, native: bool) -> dict[str, int]:
    """How many stubs every model of the repository should have. `native`: as in `stubs_of`."""
    configs = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    return {name: stubs_of(config, native=native) for name, config in configs.items()}


def stubs_of(config: str, *, native: bool) -> int:
    """How many stubs a model has: one per instance, if it runs in stubs at all.

    Ensembles do not. Nor do the onnxruntime and pytorch backends if they are `native`; the wheel's server has stand-ins
    for them in Python.
    """
    if 'platform: "ensemble"' in config or (native and 'backend: "python"' not in config):
        return 0
    return int(config.partition("instance_group")[2].partition("count:")[2].split()[0])
