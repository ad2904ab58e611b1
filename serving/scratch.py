"""What servers must keep outside their folder: short socket paths, shared memory. Named after the folder, so that
whoever comes next can remove what a killed server left.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux


def scratch_name(folder: Path) -> str:
    """The name of all that the server of `folder` keeps elsewhere."""
    return f"trident_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}"


def make_scratch_folder(folder: Path) -> Path:
    """An empty folder below the system's temporary folder, for this user alone."""
    path = scratch_folder(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path


def scratch_folder(folder: Path) -> Path:
    """Where `make_scratch_folder` makes it."""
    return Path(tempfile.gettempdir()) / scratch_name(folder)


def remove_scratch(folder: Path) -> None:
    """Remove temporary folder and shared memory of the server of `folder`, if there are any."""
    shutil.rmtree(scratch_folder(folder), ignore_errors=True)
    for region in SHARED_MEMORY.glob(f"{scratch_name(folder)}*"):
        region.unlink(missing_ok=True)
