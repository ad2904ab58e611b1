"""Bundles: signature, manifest, golden images, and the comparison with eager PyTorch."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from bundle.manifest import ImageInput, Origin
from bundle.store import Bundle, list_bundles
from tests.images import encoded, gradient
from training.datasets import load_dataset
from training.errors import ExportError
from training.export import Exportable, export_bundle
from training.golden import choose_golden_inputs
from training.models import Classifier, Servable
from training.settings import TrainSettings


class Tiny(nn.Module):
    """Three classes: the mean of each channel, scaled."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale


class DifferentWhenTraced(Tiny):
    """A model whose exported form is wrong: tracing takes a branch that eager execution does not."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 1e-3 * torch.arange(3) if torch._C._get_tracing_state() else logits


def exportable(network: nn.Module) -> Exportable:
    spec = ImageInput(height=8, width=8)
    images = [(f"{i}.png", encoded(gradient(8 + i, 9 + i))) for i in range(8)]
    sample = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    return Exportable(
        servable=Servable(Classifier(network, (0.5,) * 3, (0.25,) * 3)),
        model="tiny",
        labels=("r", "g", "b"),
        input=spec,
        origin=Origin(kind="trained", source="test", architecture="tiny", dataset="none"),
        golden=images,
        sample=sample,
        calibration=sample,
    )


def no_log(_: str) -> None:
    """Discard the line."""


def test_the_onnx_file_has_the_signature_of_the_manifest(digits: Bundle) -> None:
    graph = onnx.load(digits.file(digits.artefact("onnx"))).graph
    (image,), (probabilities,) = graph.input, graph.output
    assert (image.name, probabilities.name) == ("image", "probabilities")
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert probabilities.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    axes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert axes == ["batch", 3, 32, 32]


def test_the_files_are_self_contained_and_have_no_paths_of_this_machine(digits: Bundle) -> None:
    path = digits.file(digits.artefact("onnx"))
    onnx.checker.check_model(path)
    assert {entry.name for entry in digits.path.iterdir()} == {
        "manifest.json",
        "model.onnx",
        "model.pt",
        "model.pt2",
        "golden",
    }
    here = str(Path(torch.__file__).parent).encode()
    assert here not in path.read_bytes()
    with zipfile.ZipFile(digits.file(digits.artefact("pt2"))) as archive:
        assert not any(here in archive.read(name) for name in archive.namelist())


def test_the_manifest_records_the_comparison(digits: Bundle) -> None:
    manifest = json.loads((digits.path / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        assert artefact["max_abs_difference"] <= 1e-5
        assert artefact["top1_agreement"] == 1
        assert artefact["compared_inputs"] > 100
    assert manifest["origin"]["dataset"] == "digits"
    assert len(manifest["origin"]["dataset_fingerprint"]) == 64
    assert {"torch", "onnx", "onnxruntime", "python"} <= manifest["versions"].keys()


def test_a_bundle_has_16_golden_inputs(digits: Bundle) -> None:
    assert len(digits.golden_inputs()) == 16


def image_names(tmp_path: Path, per_class: dict[str, int]) -> list[str]:
    """Return the names of the golden images of a folder with two classes and `per_class` images of each per split."""
    for split, count in per_class.items():
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(encoded(gradient(9 + i, 9 + len(split))))
    dataset = load_dataset(TrainSettings(data="folder", data_dir=tmp_path, image_size=8))
    golden = choose_golden_inputs(dataset.splits, dataset.labels)
    assert golden == choose_golden_inputs(dataset.splits, dataset.labels)
    return [name for name, _ in golden]


def test_golden_inputs_of_few_test_images(tmp_path: Path) -> None:
    """Images of other splits are added up to the minimum, and their names end with the split."""
    enough = image_names(tmp_path / "enough", {"train": 9, "val": 5, "test": 5})
    assert enough == [f"{i:02d}.png" for i in range(10)]
    with_val = image_names(tmp_path / "val", {"train": 9, "val": 5, "test": 2})
    assert with_val == ["00.png", "01.png", "02.png", "03.png", *(f"{i:02d}-val.png" for i in range(4, 8))]
    with_train = image_names(tmp_path / "train", {"train": 9, "val": 1, "test": 1})
    assert with_train == ["00.png", "01.png", "02-val.png", "03-val.png", *(f"{i:02d}-train.png" for i in range(4, 8))]
    with pytest.raises(ExportError, match="has 6 images; a bundle needs at least 8"):
        image_names(tmp_path / "none", {"train": 1, "val": 1, "test": 1})


def test_versions_are_numbered_consecutively(tmp_path: Path) -> None:
    names = [export_bundle(exportable(Tiny()), tmp_path, log=no_log).name for _ in range(2)]
    assert names == ["tiny:1", "tiny:2"]


def test_a_file_that_disagrees_with_pytorch_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.pt differs from PyTorch.*no bundle was written"):
        export_bundle(exportable(DifferentWhenTraced()), tmp_path, log=no_log)
    assert list_bundles(tmp_path) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nan_is_a_difference(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs"):
        export_bundle(exportable(Tiny(float("nan"))), tmp_path, log=no_log)
