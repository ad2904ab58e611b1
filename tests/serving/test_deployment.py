"""Which bundles are served, which is a model's default, and that files are verified once but not trusted for ever."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bundle.errors import BundleError, DeploymentError
from bundle.store import Bundle
from serving.deployment import VERIFIED, Deployment, read_verified
from serving.settings import ServingSettings


@pytest.fixture
def root(digits: Bundle, tmp_path: Path) -> Path:
    """A folder with `digits:1` and `digits:2`."""
    for version in (1, 2):
        place = Path(shutil.copytree(digits.path, tmp_path / "digits" / str(version)))
        manifest = json.loads((place / "manifest.json").read_text()) | {"version": version}
        (place / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def deployed(root: Path, *models: str) -> Deployment:
    return Deployment.of(ServingSettings(bundles=root, models=models))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_last_named_version_is_the_default(root: Path) -> None:
    deployment = deployed(root, "digits:2", "digits:1")
    assert deployment.names == "digits:2, digits:1"
    assert deployment.default("digits").name == "digits:1"
    assert [deployment.is_default(bundle) for bundle in deployment] == [False, True]
    with pytest.raises(DeploymentError, match="cats is not deployed"):
        deployment.default("cats")


def test_children_do_not_hash_again_what_has_not_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = deployed(root, "digits:1").environment()
    hashed: list[str] = []
    monkeypatch.setattr(Bundle, "verify", lambda bundle: hashed.append(bundle.name))
    monkeypatch.setenv(VERIFIED, environment[VERIFIED])
    deployed(root, "digits:1", "digits:2")
    assert hashed == ["digits:2"]


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_a_file_that_changes_after_it_was_verified_is_found(
    root: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VERIFIED, deployed(root, "digits:1").environment()[VERIFIED])
    weights = root / "digits/1/model.onnx"
    if file == "manifest.json":  # another training under the same version, whose weights are then damaged
        manifest = root / "digits/1/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"git_revision": "another"}))
    damage(weights)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        deployed(root, "digits:1")


def test_a_copy_of_a_verified_bundle_is_verified(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERIFIED, deployed(root, "digits:1").environment()[VERIFIED])
    copy = Path(shutil.copytree(root / "digits/1", tmp_path / "copy"))
    damage(copy / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt"):
        read_verified(copy)


def test_a_bundle_that_is_gone_is_still_told_to_children(root: Path) -> None:
    deployment = deployed(root, "digits:1")
    shutil.rmtree(root / "digits/1")
    assert deployment.environment()[VERIFIED]


def test_after_a_rollout(root: Path) -> None:
    deployment = deployed(root, "digits:1")
    (old,) = deployment
    new, fingerprint = read_verified(root / "digits/2")
    replaced = deployment.replace(old, new, fingerprint)
    assert replaced.names == "digits:2"
    assert replaced.is_default(new)
    assert not replaced.is_default(old)
    assert fingerprint in replaced.environment()[VERIFIED]
    assert os.environ.get(VERIFIED) is None
