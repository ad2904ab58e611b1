"""Replace a file in one step."""

import os
from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Write `path`, replacing what may be there. Readers see the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
