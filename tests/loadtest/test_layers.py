"""The order of the load test's folders: each imports only from those above it."""

import ast
from pathlib import Path

import loadtest

ROOT = Path(__file__).parents[2]
ORDER = (
    ("errors", "load", "histogram", "cores"),
    ("machine",),
    ("lanes",),
    ("generator",),
    ("scenarios",),
    ("settings",),
    ("benchmark",),
    ("analysis",),
    ("report",),
    ("tune",),
    ("truth", "overhead", "locustfile"),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MAY_USE = ("bundle.", "serving.clients.", "serving.processes")


def test_no_import_runs_against_the_order() -> None:
    for path in (ROOT / "loadtest").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            assert not node.module.startswith(("training", "trident")), path
            if node.module.startswith("serving"):
                assert node.module.startswith(MAY_USE), f"{path} imports {node.module}"
            if node.module == "loadtest":
                names = [alias.name for alias in node.names]
            elif node.module.startswith("loadtest."):
                names = [node.module.split(".")[1]]
            else:
                continue
            for name in names:
                assert name == parts[1] or RANK[name] < RANK[parts[1]], f"{path} imports loadtest.{name}"


def test_the_docstring_lists_every_folder_in_this_order() -> None:
    lines = [line[4:].partition("  ")[0] for line in str(loadtest.__doc__).splitlines() if line.startswith("    ")]
    listed = [name.strip(" /") for line in lines for name in line.split(",")]
    assert listed == [name for names in ORDER for name in names]
    folders = {
        path.name for path in (ROOT / "loadtest").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name.removesuffix(".py") for name in folders} - {"__init__"} == set(RANK)
