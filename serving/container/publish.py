"""Publish the bundles that are to be served: from the folder that training fills to the one that the servers read.

    python -m serving.container.publish DEPLOYMENT     (settings by environment: `bundles` is the source, `models` says which)

The three servers then have the same bundles, also one that is restarted while the next training is under way.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

from bundle.errors import TridentError
from bundle.store import MANIFEST, Bundle, find_bundle, list_bundles, writing_bundle
from serving.settings import load_settings

log = logging.getLogger("trident.deploy")


def deploy(bundles: list[Bundle], deployment: Path) -> None:
    """Make `deployment` hold exactly these bundles: first what is new appears, then what is old goes."""
    wanted = {(bundle.manifest.model, bundle.manifest.version): bundle for bundle in bundles}
    for (model, version), bundle in wanted.items():
        place = deployment / model / str(version)
        if place.exists():
            if (place / MANIFEST).read_bytes() == (bundle.path / MANIFEST).read_bytes():
                log.info("%s is deployed already", bundle.name)
                continue
            shutil.rmtree(place)  # the same version of another training: its folder was emptied in between
        with writing_bundle(model, version, deployment) as folder:
            shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        log.info("deployed %s", bundle.name)
    for model, version in set(list_bundles(deployment)) - set(wanted):
        shutil.rmtree(deployment / model / str(version))
        log.info("withdrew %s:%d", model, version)


def main() -> None:
    """Deploy what the settings name; without names, the newest bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("deployment", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
        deploy(bundles, arguments.deployment)
    except TridentError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
