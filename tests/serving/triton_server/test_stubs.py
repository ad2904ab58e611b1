"""How many stub processes Triton's python models should have."""

from pathlib import Path

import pytest

from bundle.store import Bundle
from serving.settings import ServingSettings
from serving.triton_server.repository import build_repository
from serving.triton_server.stubs import stubs_of


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("classifier", ["native", "python"])
def test_how_many_stubs_a_triton_model_has(
    settings: ServingSettings, digits: Bundle, tmp_path: Path, classifier: str, native: bool
) -> None:
    changes = {"triton_classifier": classifier, "workers": 2, "threads": 2}
    build_repository(digits, settings.model_copy(update=changes).of("triton"), tmp_path)
    stubs = {path.parent.name: stubs_of(path.read_text(), native=native) for path in tmp_path.glob("*/config.pbtxt")}
    assert stubs["digits"] == stubs["digits_v1"] == 0
    assert stubs["digits_v1_preprocess"] == 4
    assert stubs["digits_v1_classifier"] == (0 if native and classifier == "native" else 2)
