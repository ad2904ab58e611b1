"""CIFAR-10 from an archive in its original format, tuning of the data loader, and the description of a data set."""

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from tests.training.training_runs import train_digits
from training.datasets import load_dataset
from training.errors import DataError
from training.settings import resolve_settings
from training.tune_loader import LoaderSpeed, fastest, measure_loaders
from trident.console.training import show_dataset

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 40


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small cifar-10-python.tar.gz: five training batches, a test batch, and their checksums."""
    random = np.random.default_rng(0)
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        if name == "batches.meta":
            content: dict[str, object] = {"label_names": LABELS}
        else:
            labels = [i % 10 for i in range(PER_BATCH)]
            images = random.integers(0, 60, (PER_BATCH, 3, 32, 32)) + np.array(labels)[:, None, None, None] * 18
            content = {"data": images.reshape(PER_BATCH, 3072).astype(np.uint8), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "cifar-10-python.tar.gz", "w:gz") as file:
        file.add(folder, folder.name)
    tgz = hashlib.md5((data / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", tgz)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    return data


def test_cifar10_from_its_archive(archive: Path) -> None:
    dataset = load_dataset(resolve_settings({"data": "cifar10", "data_dir": archive}))
    assert list(dataset.labels) == LABELS
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {"train": 180, "val": 20, "test": 40}
    assert set(np.bincount(dataset.val.labels)) == {2}
    with (archive / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        first = pickle.load(file)["data"][0].reshape(3, 32, 32)
    assert np.array_equal(dataset.test.pixels(0), first)


def test_a_damaged_cifar10_archive_is_rejected(archive: Path) -> None:
    path = archive / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="CIFAR-10 is not in"):
        load_dataset(resolve_settings({"data": "cifar10", "data_dir": archive}))


def test_the_recipe_for_cifar10_trains(archive: Path, tmp_path: Path) -> None:
    settings = resolve_settings({"data": "cifar10", "data_dir": archive, "epochs": 2, "batch_size": 60})
    assert (settings.model, settings.optimizer, settings.schedule) == ("resnet9", "sgd", "onecycle")
    result = train_digits(tmp_path / "run", **settings.model_dump(exclude={"model"}), model="resnet")
    assert result.epochs == 2


def test_augmentation_moves_and_mirrors_cifar10(archive: Path) -> None:
    from training.loading import EpochBatches, augmentation, training_loader

    dataset = load_dataset(resolve_settings({"data": "cifar10", "data_dir": archive}))
    batches = EpochBatches(180, 180, seed=0)
    images, _ = next(iter(training_loader(dataset.train, augmentation("cifar10", dataset.input), batches)))
    rows = [index for _, index in next(iter(batches))]
    original = torch.stack([torch.from_numpy(dataset.train.pixels(row)) for row in rows])
    assert images.shape == original.shape == (180, 3, 32, 32)
    changed = [not torch.equal(one, other) for one, other in zip(images, original, strict=True)]
    assert np.mean(changed) > 0.9
    assert (images == 0).any(dim=1).float().mean() > (original == 0).all(dim=1).float().mean()  # padding


def test_the_cheapest_of_the_fast_loaders_is_used() -> None:
    settings = resolve_settings({"image_size": 8})
    measured = list(measure_loaders(settings, load_dataset(settings), seconds=0.05))
    assert measured[0].workers == 0
    assert all(speed.images_per_s > 0 for speed in measured)
    assert fastest([LoaderSpeed(0, None, 98), LoaderSpeed(1, 2, 70), LoaderSpeed(2, 2, 100)]).workers == 0
    assert fastest([LoaderSpeed(0, None, 50), LoaderSpeed(1, 2, 70), LoaderSpeed(2, 2, 100)]).workers == 2


def test_the_balance_of_the_classes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_dataset(load_dataset(resolve_settings({})))
    output = capsys.readouterr().out
    assert "train 1259, val 179, test 359" in output
    assert "122 (8) to 128 (1) training images per class" in " ".join(output.split())
