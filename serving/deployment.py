"""What is deployed: which bundles are served, and which version of a model is its default."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import DeploymentError
from bundle.store import MANIFEST, Bundle, locate_bundle, read_bundle
from serving.settings import ServingSettings

# Environment variable (not a setting, hence the underscore): sha256 of the manifests whose files a parent process has
# verified. Its children do not hash the same files again.
VERIFIED: Final = "_TRIDENT_VERIFIED"


@dataclass(frozen=True)
class Deployment:
    """Bundles in the order in which the settings name them. The first one's model is the default model; of several
    versions of a model, the last one is the model's default.
    """

    bundles: tuple[Bundle, ...]

    @classmethod
    def of(cls, settings: ServingSettings) -> "Deployment":
        """The bundles that the settings name, or the newest one. Every file is verified, once per process tree.

        Raises:
            BundleError: a bundle is missing or damaged.
        """
        paths = (locate_bundle(reference, settings.bundles) for reference in settings.models or (None,))
        return cls(tuple(read_deployed(path) for path in paths))

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

    def replace(self, old: Bundle, new: Bundle) -> "Deployment":
        """The deployment after a rollout."""
        return Deployment(tuple(new if bundle is old else bundle for bundle in self.bundles))

    def settings_for_children(self, settings: ServingSettings) -> ServingSettings:
        """The settings with every bundle by its path, whatever the working folder."""
        paths = tuple(str(bundle.path) for bundle in self.bundles)
        return settings.model_copy(update={"models": paths, "bundles": settings.bundles.resolve()})

    def mark_verified(self) -> Mapping[str, str]:
        """The environment variable that tells child processes which bundles need no second verification."""
        digests = _verified() | {manifest_digest(bundle.path) for bundle in self.bundles}
        return {VERIFIED: ",".join(sorted(digests))}


def read_deployed(path: Path) -> Bundle:
    """Read a bundle, and verify its files unless a parent process has done so.

    Raises:
        BundleError: it is missing or damaged.
    """
    bundle = read_bundle(path, check=False)
    if manifest_digest(path) not in _verified():
        bundle.verify()
    return bundle


def manifest_digest(path: Path) -> str:
    """sha256 of a bundle's manifest, which holds the sha256 of every other file."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def _verified() -> set[str]:
    return set(filter(None, os.environ.get(VERIFIED, "").split(",")))
