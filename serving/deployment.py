"""What is deployed: which bundles are served, and which version of a model is its default."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import DeploymentError
from bundle.store import Bundle, locate_bundle, read_bundle
from serving.settings import ServingSettings

# Environment variable (not a setting, hence the underscore): fingerprints of the bundles that a parent process has
# verified. Its children do not hash the same files again, unless one has changed since.
VERIFIED: Final = "_TRIDENT_VERIFIED"


@dataclass(frozen=True)
class Deployment:
    """Bundles in the order in which the settings name them. The first one's model is the default model; of several
    versions of a model, the last one is the model's default.

    Args:
        verified: the fingerprints of those whose files were verified, as they were then.
    """

    bundles: tuple[Bundle, ...]
    verified: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: ServingSettings) -> "Deployment":
        """The bundles that the settings name, or the newest one. Every file is verified, once per process tree.

        Raises:
            BundleError: a bundle is missing or damaged.
        """
        paths = (locate_bundle(reference, settings.bundles) for reference in settings.models or (None,))
        verified = [read_verified(path) for path in paths]
        return cls(tuple(bundle for bundle, _ in verified), frozenset(mark for _, mark in verified))

    @classmethod
    def of_one(cls, reference: str | None, settings: ServingSettings) -> "Deployment":
        """One bundle, as in `find_bundle`, whatever models the settings name.

        Raises:
            BundleError: it is missing or damaged.
        """
        return cls.of(settings.model_copy(update={"models": () if reference is None else (reference,)}))

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "Deployment":
        """What another process serves, which has verified it.

        Raises:
            BundleError: a manifest is missing or damaged.
        """
        return cls(tuple(read_bundle(path, check=False) for path in paths))

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self.bundles)

    def __len__(self) -> int:
        return len(self.bundles)

    @property
    def names(self) -> str:
        """`model:version` of every bundle, separated by commas."""
        return ", ".join(bundle.name for bundle in self.bundles)

    @property
    def default_model(self) -> str:
        """The model that answers when a request names none."""
        return self.bundles[0].manifest.model

    def versions(self, model: str) -> list[Bundle]:
        """The deployed versions of a model, in order."""
        return [bundle for bundle in self.bundles if bundle.manifest.model == model]

    def default(self, model: str) -> Bundle:
        """The version of a model that answers when a request names none.

        Raises:
            DeploymentError: the model is not deployed.
        """
        versions = self.versions(model)
        if not versions:
            raise DeploymentError(f"{model} is not deployed; deployed: {self.names}")
        return versions[-1]

    def is_default(self, bundle: Bundle) -> bool:
        """Whether this is the version that answers when a request names none."""
        versions = self.versions(bundle.manifest.model)
        return bool(versions) and versions[-1].name == bundle.name

    def replace(self, old: Bundle, new: Bundle, fingerprint: str) -> "Deployment":
        """The deployment after a rollout of `new`, which `read_verified` has returned with its fingerprint."""
        bundles = tuple(new if bundle is old else bundle for bundle in self.bundles)
        return Deployment(bundles, self.verified | {fingerprint})

    def settings_for_children(self, settings: ServingSettings) -> ServingSettings:
        """The settings with every bundle by its path, whatever the working folder."""
        paths = tuple(str(bundle.path) for bundle in self.bundles)
        return settings.model_copy(update={"models": paths, "bundles": settings.bundles.resolve()})

    def environment(self) -> Mapping[str, str]:
        """The variable that saves child processes from verifying the same bundles again."""
        return {VERIFIED: ",".join(sorted(self.verified | _verified_by_parent()))}


def read_verified(path: Path) -> tuple[Bundle, str]:
    """Read a bundle, and verify its files unless a parent process has done so. Returns it with its fingerprint.

    Raises:
        BundleError: it is missing or damaged.
    """
    bundle = read_bundle(path, check=False)
    fingerprint = _fingerprint(bundle)  # before the files are hashed: a later change is found
    if fingerprint not in _verified_by_parent():
        bundle.verify()
    return bundle, fingerprint


def _fingerprint(bundle: Bundle) -> str:
    """Of the manifest's content, and of every file's path, size, time of change and inode."""
    parts = [bundle.digest, str(bundle.path)]
    for entry in bundle.manifest.files:
        try:
            stat = bundle.file(entry).stat()
        except OSError:
            parts.append("missing")
        else:
            parts.append(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _verified_by_parent() -> set[str]:
    return set(filter(None, os.environ.get(VERIFIED, "").split(",")))
