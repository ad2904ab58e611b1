"""The wheels for a machine without a network: all that it lacks, and nothing that it has."""

import pytest

from scripts.gpu_wheels import PRESENT, needed, pinned


@pytest.mark.parametrize("python_version", ["3.11", "3.12"])
def test_every_wheel_has_an_exact_version(python_version: str) -> None:
    names = needed(python_version)
    assert {"fastapi", "uvicorn", "uvloop", "httptools", "pydantic-settings", "locust", "pytest"} <= names
    assert not names & {*PRESENT, "sympy", "triton", "protobuf", "trident-serving"}
    assert not {name for name in names if name.startswith(("nvidia-c", "nvidia-n", "torch"))}
    assert all("==" in line for line in pinned(names))


def test_a_name_without_an_exact_version_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"constraints\.txt lacks no-such-package"):
        pinned({"fastapi", "no-such-package"})
