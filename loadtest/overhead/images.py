"""The bundle with its golden images as JPEG files: most images that a service gets are JPEGs, and digits' are tiny PNGs."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from bundle.manifest import Golden
from bundle.preprocess import decode
from bundle.store import MANIFEST, Bundle, describe_file, read_bundle
from loadtest.overhead.model import Model

QUALITY: Final = 90
SUBSAMPLING: Final = "4:2:0"


@contextmanager
def with_jpeg_images(bundle: Bundle) -> Iterator[Bundle]:
    """A temporary copy of a bundle with its golden images as JPEG files. The expected answers to them are those of the ONNX file
    in this process, one image at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.manifest.model / str(bundle.manifest.version)
        shutil.copytree(bundle.path, path)
        files, pixels, model = [], [], Model(path)
        for name, data in bundle.golden_inputs():
            file = (path / name).with_suffix(".jpg")
            file.write_bytes(as_jpeg(data))
            files.append(file)
            pixels.append(model.decode(file.read_bytes()))
        probabilities = path / bundle.manifest.golden.probabilities.file
        np.save(probabilities, np.concatenate([model.infer([one]) for one in pixels]))
        golden = Golden(
            inputs=tuple(describe_file(file, path) for file in files), probabilities=describe_file(probabilities, path)
        )
        manifest = bundle.manifest.model_copy(update={"golden": golden})
        (path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
        yield read_bundle(path)


def as_jpeg(image: bytes) -> bytes:
    """An encoded image as a JPEG file, in colour."""
    file = io.BytesIO()
    decode(image).save(file, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return file.getvalue()
