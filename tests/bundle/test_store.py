import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import BundleError
from bundle.manifest import ImageInput
from bundle.store import Bundle, find_bundle, list_bundles, next_version, read_bundle, writing_bundle


@pytest.fixture
def copy(digits: Bundle, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(digits.path, tmp_path / "digits" / "1"))


def test_reads_what_was_written(digits: Bundle) -> None:
    bundle = read_bundle(digits.path)
    assert bundle.name == "digits:1"
    assert bundle.golden_probabilities().shape == (len(bundle.golden_inputs()), 10)
    assert bundle.golden_probabilities().dtype == np.float32
    assert np.allclose(bundle.golden_probabilities().sum(1), 1, atol=1e-5)


def test_a_changed_file_is_refused(copy: Path) -> None:
    weights = copy / "model.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx.*sha256"):
        read_bundle(copy)
    assert read_bundle(copy, check=False).name == "digits:1"


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "golden" / "03.png").unlink()
    with pytest.raises(BundleError, match=r"lacks golden/03\.png"):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 3}, "schema version 3"),
        ({"labels": ["a", "b"]}, "2 labels for 10 classes"),
        ({"model": "../evil"}, "model"),
        ({"golden": {"inputs": [], "probabilities": {}}}, "golden"),
    ],
)
def test_a_bad_manifest_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(BundleError, match=message):
        read_bundle(copy)


def test_a_manifest_cannot_point_outside(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace("golden/probabilities.npy", "../../secret.npy"))
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        read_bundle(copy)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        read_bundle(tmp_path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with writing_bundle("m", 1, tmp_path) as folder:
            (folder / "half").write_text("written")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list((tmp_path / "m").iterdir()) == []
    assert list_bundles(tmp_path) == []


def test_versions_are_never_overwritten(tmp_path: Path) -> None:
    with writing_bundle("m", 1, tmp_path) as folder:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="exists already"), writing_bundle("m", 1, tmp_path):
        pass
    assert next_version("m", tmp_path) == 2


def test_a_race_for_a_version_has_one_winner(tmp_path: Path) -> None:
    def write() -> None:
        with writing_bundle("m", 1, tmp_path) as slow:
            (slow / "manifest.json").write_text("slow")
            with writing_bundle("m", 1, tmp_path) as quick:
                (quick / "manifest.json").write_text("quick")

    with pytest.raises(BundleError, match="appeared"):
        write()
    assert (tmp_path / "m" / "1" / "manifest.json").read_text() == "quick"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]


def test_find(digits: Bundle, bundles: Path) -> None:
    for reference in (None, "digits", "digits:1", str(digits.path)):
        assert find_bundle(reference, bundles).path == digits.path
    for reference in ("digits:7", "nothing", "digits:x"):
        with pytest.raises(BundleError, match=r"no bundle|neither"):
            find_bundle(reference, bundles)


def test_crop_needs_a_shorter_side() -> None:
    with pytest.raises(ValueError, match="shorter_side"):
        ImageInput(height=8, width=8, resize="crop")
    with pytest.raises(ValueError, match="shorter_side"):
        ImageInput(height=8, width=8, resize="crop", shorter_side=7)
