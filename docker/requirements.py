"""Print the requirements of some extras of pyproject.toml, so that an image installs them before it has the source.

python docker/requirements.py [EXTRA ...] > requirements.txt
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """The core's requirements and those of the extras; an extra that names others of the project is followed."""
    yield from project["dependencies"]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            name, _, inner = requirement.partition("[")
            if name == project["name"]:
                yield from requirements(project, inner.rstrip("]").split(","))
            else:
                yield requirement


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join(dict.fromkeys(requirements(table, sys.argv[1:]))))
