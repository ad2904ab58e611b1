"""Model archives."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

from bundle.store import Bundle
from serving.torchserve_server.archive import build_archive


def test_archives_of_the_same_model_are_built_at_the_same_time(digits: Bundle, tmp_path: Path) -> None:
    """torch-model-archiver collects the files in a folder that is named after the model."""
    with ThreadPoolExecutor(3) as pool:
        stores = [tmp_path / str(number) for number in range(3)]
        for archive in pool.map(lambda store: build_archive(digits, {"minWorkers": 1}, store), stores):
            with ZipFile(archive) as packed:
                assert "manifest.json" in packed.namelist()
            assert [file.name for file in archive.parent.iterdir()] == [archive.name]
