"""The stub processes in which Triton runs python models."""

from pathlib import Path
from typing import Final

_STUB: Final = "triton_python_backend_stub"


def living_stubs(pid: int, repository: Path) -> dict[str, list[int]]:
    """The process ids of living stubs of the server `pid`, by model. A stub's command line has its model's path,
    `<repository>/<model>/...`.
    """
    import psutil  # only supervisors have it; the container of Triton does not

    found: dict[str, list[int]] = {}
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return found
    for child in children:
        try:
            words = child.cmdline()
            if words and words[0].endswith(_STUB) and child.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(Path(words[1]).relative_to(repository).parts[0], []).append(child.pid)
        except (psutil.Error, ValueError, IndexError):
            continue
    return found


def expected_stubs(repository: Path) -> dict[str, int]:
    """How many stubs every model of the repository should have."""
    configs = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    return {name: stubs_of(config) for name, config in configs.items()}


def stubs_of(config: str) -> int:
    """How many stubs a model has: one per instance on the python backend; ensembles and native backends have none."""
    if 'backend: "python"' not in config:
        return 0
    return int(config.partition("instance_group")[2].partition("count:")[2].split()[0])
