"""A bundle -> TorchServe's model archive (.mar), by torch-model-archiver."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bundle.errors import DeploymentError
from bundle.store import Bundle

HANDLER: Final = Path(__file__).with_name("handler.py")


def archive_name(bundle: Bundle) -> str:
    """The archive's file name in the model store."""
    return f"{bundle.manifest.model}-{bundle.manifest.version}.mar"


def build_archive(bundle: Bundle, model_config: dict[str, Any], store: Path) -> Path:
    """Pack the whole bundle with the handler and its configuration into `store`. The archive is complete or absent.

    Raises:
        DeploymentError: torch-model-archiver failed.
    """
    manifest = bundle.manifest
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=store) as work:
        import yaml  # installed with TorchServe only; callers of the other functions may not have it

        config = Path(work) / "model-config.yaml"
        config.write_text(yaml.safe_dump(model_config, sort_keys=False))
        command = [
            *(str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", manifest.model),
            *("--version", str(manifest.version), "--handler", str(HANDLER)),
            *("--extra-files", str(bundle.path), "--config-file", str(config)),
            *("--export-path", work, "--archive-format", "zip-store", "--force"),
        ]
        # It collects the files in $TMPDIR/<model name>: two stacks that start at once would share that folder.
        environment = os.environ | {"TMPDIR": work}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        built = Path(work) / f"{manifest.model}.mar"
        if done.returncode or not built.is_file():
            raise DeploymentError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        archive = store / archive_name(bundle)
        os.replace(built, archive)
        return archive
