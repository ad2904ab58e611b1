"""Download the wheels that `make gpu-check` needs on a machine without a network: `make gpu-wheels`.

    python -m scripts.gpu_wheels [FOLDER] [--python-version 3.12] [--max-mib 64]

The machine has a Python environment with CUDA builds of torch and torchvision, and the packages of PRESENT. Everything else that
the check imports is downloaded in the exact versions of constraints.txt, for x86-64 Linux. `scripts/gpu_check.sh` installs it.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = Path("artifacts/gpu-wheels")
# What the machine has, and what these packages need.
PRESENT: Final = (
    *("torch", "torchvision", "numpy", "pillow", "onnx", "onnxruntime", "onnxscript"),
    *("scipy", "scikit-learn", "scikit-image", "matplotlib", "setuptools", "pip"),
)
# The check's requirements: the core, these extras, and the packages that the extras `training` and `dev` have beside large ones.
EXTRAS: Final = ("fastapi", "loadtest", "stack")
MORE: Final = ("efficientnet-lite-pytorch", "jinja2", "nvidia-ml-py", "pytest", "pytest-timeout", "pytest-xdist")
_PLATFORMS: Final = ("1", "2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_31", "_2_34")


def main() -> None:
    """Download the wheels, and print their number and size."""
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pins = pinned(needed(arguments.python_version))
    download(pins, folder, arguments.python_version)
    wheels = list(folder.glob("*.whl"))
    mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels for Python {arguments.python_version} in {folder}: {mib:.1f} MiB")
    if mib > arguments.max_mib:
        sys.exit(f"error: that is more than {arguments.max_mib:g} MiB")


def needed(python_version: str) -> set[str]:
    """The names of the distributions that the machine lacks."""
    markers = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    roots = [
        *(Requirement(line) for line in requires("trident-serving") or ()),
        *(Requirement(f"trident-serving[{extra}]") for extra in EXTRAS),
        *(Requirement(name) for name in MORE),
    ]
    core = [requirement for requirement in roots if "extra" not in str(requirement.marker or "")]
    present = _closure((Requirement(name) for name in PRESENT), markers, set())
    return _closure(core, markers, present) - present - {"trident-serving"}


def pinned(names: Iterable[str]) -> list[str]:
    """The lines of constraints.txt for these names.

    Raises:
        SystemExit: one is missing there.
    """
    lines = (ROOT / "constraints.txt").read_text().split()
    exact = {str(canonicalize_name(line.partition("==")[0])): line for line in lines}
    missing = sorted(set(names) - set(exact))
    if missing:
        sys.exit(f"error: constraints.txt lacks {', '.join(missing)}")
    return sorted(exact[name] for name in names)


def download(pins: Iterable[str], folder: Path, python_version: str) -> None:
    """Let pip download wheels; it resolves nothing."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version", python_version, "--implementation", "cp"]
    command += [part for platform in _PLATFORMS for part in ("--platform", f"manylinux{platform}_x86_64")]
    subprocess.run([*command, *pins], check=True)


def _closure(requirements: Iterable[Requirement], markers: dict[str, str], skip: set[str]) -> set[str]:
    """The names of the requirements, and of all that these need, by the metadata of this environment."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if name in skip:
            continue
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _requirements_of(name, extra, markers)
    return found


def _requirements_of(name: str, extra: str, markers: dict[str, str]) -> Iterator[Requirement]:
    try:
        lines = requires(name) or ()
    except PackageNotFoundError:  # another platform's package, or one that only the target has
        return
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None:
            if not extra:
                yield requirement
        elif requirement.marker.evaluate({**markers, "extra": extra}):
            yield requirement


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--python-version", default="3.12", help="of the machine; default: 3.12")
    parser.add_argument("--max-mib", type=float, default=64.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
