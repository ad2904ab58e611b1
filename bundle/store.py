"""Bundles on disk: `<root>/<model>/<version>/` with manifest.json, the model's files and golden images.

A bundle is complete or absent: it is written to a temporary folder beside its final place, synced, then renamed. Readers
check every file against the sha256 in the manifest.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from bundle.errors import BundleError
from bundle.golden import Expected
from bundle.manifest import READABLE_VERSIONS, Artefact, File, Format, Manifest, Precision
from bundle.postprocess import Probabilities

BUNDLES: Final = Path("artifacts/bundles")
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class GoldenExample:
    """An encoded input, by its file's name, and the right answer to it."""

    name: str
    data: bytes
    expected: Expected


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read. `digest`: sha256 of its manifest, which has the sha256 of every other file."""

    path: Path
    manifest: Manifest
    digest: str = ""

    @property
    def name(self) -> str:
        """`model:version`."""
        return f"{self.manifest.model}:{self.manifest.version}"

    def artefact(self, format_: Format, precision: Precision = "fp32") -> Artefact:
        """The model's file in this format and precision."""
        for artefact in self.manifest.artefacts:
            if (artefact.format, artefact.precision) == (format_, precision):
                return artefact
        have = ", ".join(f"{a.format} {a.precision}" for a in self.manifest.artefacts)
        raise BundleError(f"bundle {self.name} has no {format_} {precision}; it has: {have}")

    def file(self, entry: File) -> Path:
        """The path of a file that the manifest names."""
        return self.path / entry.file

    def verify(self) -> None:
        """Compare every file with its size and sha256 in the manifest.

        Raises:
            BundleError: a file is missing or differs.
        """
        for entry in self.manifest.files:
            path = self.file(entry)
            if not path.is_file():
                raise BundleError(f"bundle {self.name} lacks {entry.file}")
            if path.stat().st_size != entry.bytes or _sha256(path) != entry.sha256:
                raise BundleError(
                    f"bundle {self.name}: {entry.file} is not the file that was exported (sha256 differs)"
                )

    def golden_examples(self, top_k: int | None = None) -> list[GoldenExample]:
        """The golden inputs with their right answers, to requests for `top_k` classes (None: all)."""
        manifest = self.manifest
        return [
            GoldenExample(name, data, Expected(row, top_k, manifest.labels, self.name))
            for (name, data), row in zip(self.golden_inputs(), self.golden_probabilities(), strict=True)
        ]

    def golden_probabilities(self) -> Probabilities:
        """float32 `[inputs, classes]`, as eager PyTorch computed them."""
        probabilities: Probabilities = np.load(self.file(self.manifest.golden.probabilities), allow_pickle=False)
        return probabilities

    def golden_inputs(self) -> list[tuple[str, bytes]]:
        """The golden inputs: file names and encoded bytes."""
        return [(entry.file, self.file(entry).read_bytes()) for entry in self.manifest.golden.inputs]


def read_bundle(path: Path, *, check: bool = True) -> Bundle:
    """Read the bundle in folder `path`; with `check`, compare every file with its sha256.

    Raises:
        BundleError: it is missing, damaged, or of an unknown schema version.
    """
    manifest_path = path / MANIFEST
    try:
        text = manifest_path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: {error.strerror}: {manifest_path}") from error
    try:
        schema_version = json.loads(text).get("schema_version")
        if schema_version not in READABLE_VERSIONS:
            raise BundleError(
                f"{manifest_path} has schema version {schema_version}; this Trident reads "
                f"{', '.join(map(str, READABLE_VERSIONS))}: export it again"
            )
        manifest = Manifest.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError) as error:
        raise BundleError(f"{manifest_path} is damaged: {error}") from error
    bundle = Bundle(path.resolve(), manifest, hashlib.sha256(text).hexdigest())
    if check:
        bundle.verify()
    return bundle


def find_bundle(reference: str | None = None, root: Path = BUNDLES) -> Bundle:
    """Read and verify the bundle that `locate_bundle` finds.

    Raises:
        BundleError: it is missing or damaged.
    """
    return read_bundle(locate_bundle(reference, root))


def locate_bundle(reference: str | None = None, root: Path = BUNDLES) -> Path:
    """The folder of the bundle that `reference` names: a folder, `model:version`, `model` (its highest version), or None
    (the newest bundle of all).

    Raises:
        BundleError: there is none.
    """
    if reference is not None and (Path(reference) / MANIFEST).is_file():
        return Path(reference)
    model, _, version = (reference or "").partition(":")
    if version and not version.isdecimal():
        raise BundleError(f"{reference!r} is neither a bundle's folder nor MODEL nor MODEL:VERSION")
    found = [
        (name, number)
        for name, number in list_bundles(root)
        if (not model or name == model) and (not version or number == int(version))
    ]
    if not found:
        known = ", ".join(f"{name}:{number}" for name, number in list_bundles(root)) or "none yet"
        raise BundleError(
            f"no bundle {reference or ''} in {root} (found: {known}); make one with `trident export` or `trident import`"
        )
    if reference is None:
        name, number = max(found, key=lambda entry: (root / entry[0] / str(entry[1]) / MANIFEST).stat().st_mtime)
    else:
        name, number = max(found, key=lambda entry: entry[1])
    return root / name / str(number)


def list_bundles(root: Path = BUNDLES) -> list[tuple[str, int]]:
    """All `(model, version)` below `root`, sorted."""
    return sorted(
        (path.parent.parent.name, int(path.parent.name))
        for path in root.glob(f"*/*/{MANIFEST}")
        if path.parent.name.isdecimal()
    )


def next_version(model: str, root: Path = BUNDLES) -> int:
    """One more than the highest version of `model`."""
    return max((version for name, version in list_bundles(root) if name == model), default=0) + 1


@contextmanager
def writing_bundle(model: str, version: int, root: Path = BUNDLES) -> Iterator[Path]:
    """A temporary folder to fill. At the end of the block it becomes the bundle; if the block raises, it is removed.

    Raises:
        BundleError: that version exists already.
    """
    place = root / model / str(version)
    if place.exists():
        raise BundleError(f"bundle {model}:{version} exists already; versions are never overwritten")
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=place.parent))
    try:
        work.chmod(0o755)
        yield work
        _sync_tree(work)
        try:
            work.rename(place)
        except OSError as error:
            raise BundleError(f"bundle {model}:{version} appeared while it was written") from error
        _sync(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def describe_file(path: Path, root: Path) -> File:
    """The manifest's entry for a file below `root`."""
    return File(file=path.relative_to(root).as_posix(), sha256=_sha256(path), bytes=path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
