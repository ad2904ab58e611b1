"""How many stub processes Triton's python models should have."""

from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.settings import ServingSettings
from serving.triton_server.repository import build_repository
from serving.triton_server.stubs import expected_stubs


@pytest.mark.parametrize("native", [False, True])
def test_how_many_stubs_a_triton_model_has(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, native: bool
) -> None:
    home = tmp_path / "tritonserver"
    (home / "backends" / ("onnxruntime" if native else "python")).mkdir(parents=True)
    changes = {"triton_home": home, "workers": 2, "threads": 2}
    build_repository(digits, settings.model_copy(update=changes).of("triton"), tmp_path / "models")
    assert expected_stubs(tmp_path / "models") == {
        "digits": 0,
        "digits_v1": 0,
        "digits_v1_image": 4 if native else 2,
        "digits_v1_classifier": 0 if native else 2,
    }
