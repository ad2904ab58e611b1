"""Files that servers must keep outside their folder: sockets with short paths, shared memory. They are named after the
folder, so that the next start can remove what a killed server left behind.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux


def scratch_name(folder: Path) -> str:
    """The name prefix of everything that the server of `folder` keeps outside it."""
    return f"trident_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}"


def make_scratch_folder(folder: Path) -> Path:
    """Make an empty folder in the system's temporary folder, for this user only."""
    path = scratch_folder(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path


def scratch_folder(folder: Path) -> Path:
    """The path of the scratch folder."""
    return Path(tempfile.gettempdir()) / scratch_name(folder)


def remove_scratch(folder: Path) -> None:
    """Remove the scratch folder and the shared memory of the server of `folder`."""
    shutil.rmtree(scratch_folder(folder), ignore_errors=True)
    for region in SHARED_MEMORY.glob(f"{scratch_name(folder)}*"):
        region.unlink(missing_ok=True)
