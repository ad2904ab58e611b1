"""A file that readers find whole, or as it was before."""

import os
from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Write `path` in one step, over what may be there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
