import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serving.preprocess import preprocess
from tests.pictures import encoded, gradient
from tests.training_runs import train_digits
from training.checkpoint import load_checkpoint
from training.datasets import load_dataset
from training.errors import CheckpointError, DataError, ModelError
from training.loading import augmentation, mixed_seed, training_loader
from training.models import Classifier, Servable, build_network
from training.settings import TrainSettings
from training.trainer import warmup_then_cosine


def test_digits_are_split_without_overlap() -> None:
    dataset = load_dataset(TrainSettings())
    assert sum(len(split.labels) for split in dataset.splits.values()) == 1797
    pictures = [split.encoded(i) for split in dataset.splits.values() for i in range(len(split.labels))]
    assert len(set(pictures)) == len(pictures)
    for split in dataset.splits.values():
        assert set(split.labels) == set(range(10))


def test_training_sees_what_serving_sees() -> None:
    split = load_dataset(TrainSettings()).val
    spec = load_dataset(TrainSettings()).input
    assert np.array_equal(split.pixels(3), preprocess(split.encoded(3), spec))


def test_fingerprint_follows_the_data() -> None:
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
    loader, sampler = training_loader(
        dataset.train, augmentation("digits", dataset.input), batch_size=64, seed=5, workers=workers, pin_memory=False
    )
    sampler.epoch = 2
    images, labels = next(iter(loader))
    assert images.dtype == torch.uint8
    assert images.shape == (64, 3, 32, 32)
    reference, reference_sampler = training_loader(
        dataset.train, augmentation("digits", dataset.input), batch_size=64, seed=5, workers=0, pin_memory=False
    )
    reference_sampler.epoch = 2
    expected_images, expected_labels = next(iter(reference))
    assert torch.equal(labels, expected_labels)
    assert torch.equal(images, expected_images)


def test_every_epoch_has_another_order() -> None:
    dataset = load_dataset(TrainSettings())
    _, sampler = training_loader(dataset.train, lambda x: x, batch_size=64, seed=0, workers=0, pin_memory=False)
    orders = []
    for epoch in range(2):
        sampler.epoch = epoch
        orders.append([index for batch in sampler for _, index in batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(dataset.train.labels)))
    assert orders[0] != orders[1]


def test_seeds_are_mixed() -> None:
    seeds = {mixed_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet", "resnet18", "mobilenet_v3_small", "googlenet"])
def test_models_fit_the_classes(name: str) -> None:
    servable = Servable(Classifier(build_network(name, 7, 64), (0.5,) * 3, (0.25,) * 3))
    with torch.inference_mode():
        probabilities = servable(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert probabilities.shape == (2, 7)
    assert torch.allclose(probabilities.sum(1), torch.ones(2))


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet1800'"):
        build_network("resnet1800", 10, 32)


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    factor = warmup_then_cosine(10, 100)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[10] == 1
    assert values[100] == pytest.approx(0)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_early_stopping(tmp_path: Path) -> None:
    result = train_digits(tmp_path, epochs=30, patience=1, learning_rate=0.5, image_size=8)
    assert result.stopped_early
    assert result.epochs < 30
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["val_loss"])
    assert load_checkpoint(result.checkpoint).epoch == best["epoch"] == result.best_epoch


def test_a_checkpoint_is_no_pickle_of_objects(checkpoint: Path, tmp_path: Path) -> None:
    assert load_checkpoint(checkpoint).settings.data == "digits"
    evil = tmp_path / "evil.pt"
    torch.save({"schema": 1, "settings": Path("x")}, evil)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(evil)
    with pytest.raises(CheckpointError, match="is not there"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of pictures, in several formats."""
    for label, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / label).mkdir()
        for i in range(20):
            image = gradient(40 + i, 30 + i)
            tinted = Image.blend(image, Image.new("RGB", image.size, color), 0.7)
            format_, suffix = [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")][i % 3]
            (tmp_path / label / f"{i}.{suffix}").write_bytes(encoded(tinted, format_))
    return tmp_path


def test_a_folder_of_pictures_is_split_and_learnt(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(TrainSettings(data="folder", data_dir=folder, image_size=32))
    assert dataset.labels == ("blue", "red")
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 32, "val": 4, "test": 4}
    result = train_digits(
        tmp_path / "run", data="folder", data_dir=folder, image_size=32, name="colors", epochs=6, batch_size=8
    )
    assert result.test_accuracy == 1


def test_a_folder_that_is_split_already(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split in ("train", "val"):
        for label in ("red", "blue"):
            shutil.copytree(folder / label, root / split / label)
    dataset = load_dataset(TrainSettings(data="folder", data_dir=root, image_size=32))
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 40, "val": 40, "test": 40}


def test_unusable_folders_say_why(tmp_path: Path) -> None:
    def load(path: Path | None) -> None:
        load_dataset(TrainSettings(data="folder", data_dir=path))

    with pytest.raises(DataError, match="--data-dir"):
        load(None)
    with pytest.raises(DataError, match="is no folder"):
        load(tmp_path / "none")
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match="at least two folders"):
        load(tmp_path)
    (tmp_path / "second").mkdir()
    with pytest.raises(DataError, match="no pictures below"):
        load(tmp_path)
    for label in ("only", "second"):
        (tmp_path / label / "one.png").write_bytes(encoded(gradient()))
    with pytest.raises(DataError, match="too few to split"):
        load(tmp_path)


def test_cifar10_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset(TrainSettings(data="cifar10", data_dir=tmp_path))
