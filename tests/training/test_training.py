"""Data sets, batches, models and whole runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.preprocess import preprocess
from tests.images import encoded, gradient
from tests.training.training_runs import train_digits
from training.checkpoint import load_checkpoint
from training.datasets import FileSplit, load_dataset
from training.distributed import Processes
from training.errors import CheckpointError, DataError, ModelError
from training.loading import EpochBatches, augmentation, derive_seed, training_loader
from training.models import Classifier, Servable, build_network
from training.settings import TrainSettings


def test_digits_are_split_without_overlap() -> None:
    dataset = load_dataset(TrainSettings())
    assert sum(len(split.labels) for split in dataset.splits.values()) == 1797
    images = [split.encoded(i) for split in dataset.splits.values() for i in range(len(split.labels))]
    assert len(set(images)) == len(images)
    for split in dataset.splits.values():
        assert set(split.labels) == set(range(10))


def test_training_and_serving_see_the_same_pixels() -> None:
    split = load_dataset(TrainSettings()).val
    spec = load_dataset(TrainSettings()).input
    assert np.array_equal(split.pixels(3), preprocess(split.encoded(3), spec))


def test_the_fingerprint_depends_on_the_data() -> None:
    assert load_dataset(TrainSettings()).fingerprint == load_dataset(TrainSettings()).fingerprint
    assert load_dataset(TrainSettings()).fingerprint != load_dataset(TrainSettings(image_size=16)).fingerprint


def test_same_seed_same_weights(tmp_path: Path) -> None:
    first, again, other = (
        load_checkpoint(train_digits(tmp_path / name, epochs=1, seed=seed, image_size=8).checkpoint).weights
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_loader_workers(workers: int) -> None:
    dataset = load_dataset(TrainSettings())
    augment = augmentation("digits", dataset.input)

    def first_batch(workers: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = EpochBatches(len(dataset.train.labels), 64, seed=5)
        batches.epoch = 2
        images, labels = next(iter(training_loader(dataset.train, augment, batches, workers)))
        return images, labels

    images, labels = first_batch(workers)
    assert images.dtype == torch.uint8
    assert images.shape == (64, 3, 32, 32)
    expected_images, expected_labels = first_batch(0)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(images, expected_images)


def order(batches: EpochBatches, epoch: int) -> list[list[int]]:
    batches.epoch = epoch
    return [[index for _, index in batch] for batch in batches]


def test_every_epoch_has_another_order() -> None:
    first, second = ([i for batch in order(EpochBatches(130, 64, seed=0), epoch) for i in batch] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(130))
    assert first != second


def test_a_step_sees_the_same_images_for_any_number_of_shares() -> None:
    whole = order(EpochBatches(150, 32, seed=1), 0)
    for parts, count in ((1, 2), (4, 1), (2, 3)):
        by_process = [order(EpochBatches(150, 32, 1, parts, Processes(rank, count)), 0) for rank in range(count)]
        for step, batch in enumerate(whole):
            shares = [share for batches in by_process for share in batches[step * parts : (step + 1) * parts]]
            assert sorted(i for share in shares for i in share) == sorted(batch)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_epoch_can_start_in_the_middle() -> None:
    batches = EpochBatches(150, 32, seed=1)
    whole = order(batches, 3)
    batches.first_step = 2
    assert order(batches, 3) == whole[2:]


def test_every_share_has_at_least_two_images() -> None:
    assert [len(batch) for batch in order(EpochBatches(65, 32, seed=0), 0)] == [32, 32]
    assert [len(batch) for batch in order(EpochBatches(66, 32, seed=0), 0)] == [32, 32, 2]
    assert [len(batch) for batch in order(EpochBatches(7, 32, seed=0), 0)] == [7]
    with pytest.raises(DataError, match="cannot be divided into 8 shares"):
        EpochBatches(7, 32, seed=0, parts=4, processes=Processes(0, 2))


def test_seeds_are_mixed() -> None:
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "name",
    ["mlp", "simple_cnn", "resnet", "resnet9", "efficientnet_lite0", "resnet18", "mobilenet_v3_small", "googlenet"],
)
def test_models_return_one_probability_per_class(name: str) -> None:
    servable = Servable(Classifier(build_network(name, 7, 64), (0.5,) * 3, (0.25,) * 3))
    with torch.inference_mode():
        probabilities = servable(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert probabilities.shape == (2, 7)
    assert torch.allclose(probabilities.sum(1), torch.ones(2))


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet1800'"):
        build_network("resnet1800", 10, 32)


def test_early_stopping(tmp_path: Path) -> None:
    result = train_digits(tmp_path, epochs=30, patience=1, learning_rate=0.5, image_size=8)
    assert result.stopped_early
    assert result.epochs < 30
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["val_loss"])
    assert load_checkpoint(result.checkpoint).epoch == best["epoch"] == result.best_epoch


def test_a_checkpoint_with_pickled_objects_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    assert load_checkpoint(checkpoint).settings.data == "digits"
    pickled = tmp_path / "pickled.pt"
    torch.save({"schema": 2, "settings": Path("x")}, pickled)
    with pytest.raises(CheckpointError, match="not a Trident checkpoint"):
        load_checkpoint(pickled)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images, in several formats."""
    for label, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / label).mkdir()
        for i in range(20):
            image = gradient(40 + i, 30 + i)
            tinted = Image.blend(image, Image.new("RGB", image.size, color), 0.7)
            format_, suffix = [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")][i % 3]
            (tmp_path / label / f"{i}.{suffix}").write_bytes(encoded(tinted, format_))
    return tmp_path


def test_a_folder_of_images_is_split_and_learned(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(TrainSettings(data="folder", data_dir=folder, image_size=32))
    assert dataset.labels == ("blue", "red")
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 32, "val": 4, "test": 4}
    result = train_digits(
        tmp_path / "run", data="folder", data_dir=folder, image_size=32, name="colors", epochs=6, batch_size=8
    )
    assert result.test_accuracy == 1


def test_a_folder_with_splits(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split in ("train", "val"):
        for label in ("red", "blue"):
            shutil.copytree(folder / label, root / split / label)
    dataset = load_dataset(TrainSettings(data="folder", data_dir=root, image_size=32))
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 36, "val": 4, "test": 40}
    assert isinstance(dataset.test, FileSplit)
    assert all(path.is_relative_to(root / "val") for path in dataset.test.paths)


def test_errors_explain_why_a_folder_is_unusable(tmp_path: Path) -> None:
    def load(path: Path | None) -> None:
        load_dataset(TrainSettings(data="folder", data_dir=path))

    with pytest.raises(DataError, match="--data-dir"):
        load(None)
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "none")
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match="at least two folders"):
        load(tmp_path)
    (tmp_path / "second").mkdir()
    with pytest.raises(DataError, match="no images in"):
        load(tmp_path)
    for label in ("only", "second"):
        (tmp_path / label / "one.png").write_bytes(encoded(gradient()))
    with pytest.raises(DataError, match="too few to split"):
        load(tmp_path)
    for label in ("only", "second"):
        for name in ("two.png", "three.png"):
            (tmp_path / label / name).write_bytes(encoded(gradient()))
    with pytest.raises(DataError, match="has 6 images; an exported model needs at least 8"):
        load(tmp_path)


def test_missing_cifar10_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset(TrainSettings(data="cifar10", data_dir=tmp_path))
