"""Publish the bundles that are to be served: from the folder that training writes to the one that the servers read.

    python -m serving.container.publish DEPLOYMENT     (settings by environment: `bundles` is the source)

So the three servers have the same bundles, also one that restarts while the next training is running.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

from bundle.errors import TridentError
from bundle.store import MANIFEST, list_bundles, writing_bundle
from serving.deployment import Deployment
from serving.settings import load_settings

log = logging.getLogger("trident.publish")


def publish(deployment: Deployment, folder: Path) -> None:
    """Make `folder` hold exactly these bundles. New ones appear before old ones go."""
    wanted = {(bundle.manifest.model, bundle.manifest.version): bundle for bundle in deployment}
    for (model, version), bundle in wanted.items():
        place = folder / model / str(version)
        if place.exists():
            if (place / MANIFEST).read_bytes() == (bundle.path / MANIFEST).read_bytes():
                log.info("%s is published already", bundle.name)
                continue
            shutil.rmtree(place)  # the same version from another training, whose folder was emptied in between
        with writing_bundle(model, version, folder) as draft:
            shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        log.info("published %s", bundle.name)
    for model, version in set(list_bundles(folder)) - set(wanted):
        shutil.rmtree(folder / model / str(version))
        log.info("removed %s:%d", model, version)


def main() -> None:
    """Publish what the settings name; without names, the newest bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("deployment", type=Path, help="the folder that the servers read")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        publish(Deployment.of(load_settings()), arguments.deployment)
    except TridentError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
