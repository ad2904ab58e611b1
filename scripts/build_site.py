"""Build the documentation's site from docs/ into artifacts/site, strictly. `make docs` runs it in .venv-docs.

Zensical refuses links to pages and anchors that do not exist. This script adds what it leaves out: links to source files,
which are not part of the site, become plain text; every other file that a page names must exist; and no page may load
anything from another host.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).resolve().parents[1]
SITE: Final = ROOT / "artifacts" / "site"
LINK: Final = re.compile(r'<a href="([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
LOADED: Final = re.compile(r'<(?:link|script|img|iframe|source)\b[^>]*?\b(?:href|src)="([^"]*)"')
NOT_LOADED: Final = re.compile(r'<link rel="(?:canonical|next|prev)"[^>]*>')


def main() -> None:
    """Build, check, and exit with 1 if anything is wrong."""
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--strict", "--clean"], cwd=ROOT, capture_output=True, text=True)
    if built.returncode != 0:
        sys.exit(built.stdout + built.stderr)
    faults = [fault for page in sorted(SITE.rglob("*.html")) for fault in finish(page)]
    if faults:
        sys.exit("\n".join(faults))
    print(f"the site is at {SITE.relative_to(ROOT)}; `python3 -m http.server -d {SITE.relative_to(ROOT)}` serves it")


def finish(page: Path) -> Iterator[str]:
    """Unlink source files in a page, and report what it cannot load."""
    text = LINK.sub(lambda found: found[2] if leaves_the_site(page, found[1]) else found[0], page.read_text())
    page.write_text(text)
    name = page.relative_to(SITE)
    for address in LOADED.findall(NOT_LOADED.sub("", text)):
        if urlsplit(address).netloc:
            yield f"{name}: loads {address} from another host"
        elif not exists(page, address):
            yield f"{name}: {address} does not exist"
    for address, _ in LINK.findall(text):
        if not urlsplit(address).netloc and not exists(page, address):
            yield f"{name}: the link to {address} leads nowhere"


def leaves_the_site(page: Path, address: str) -> bool:
    """Whether a link leads to a file of the repository that is not part of the site."""
    parts = urlsplit(unescape(address))
    return not (parts.scheme or parts.netloc) and not target(page, parts.path).is_relative_to(SITE)


def exists(page: Path, address: str) -> bool:
    """Whether a file of the site exists. Data in the address itself always does."""
    parts = urlsplit(unescape(address))
    return parts.scheme in ("data", "mailto") or page.name == "404.html" or target(page, parts.path).exists()


def target(page: Path, path: str) -> Path:
    """The file that a path in a page names."""
    return (page.parent / unquote(path)).resolve() if path else page


if __name__ == "__main__":
    main()
