"""The console of all commands."""

from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

console = Console()


def log(line: str) -> None:
    """Write one line, without highlighting and wrapping."""
    console.print(line, highlight=False, soft_wrap=True)


def loading(what: str) -> AbstractContextManager[Any]:
    """Show a spinner during the block."""
    return console.status(f"loading {what}")
