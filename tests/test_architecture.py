"""Who may import whom; what a folder may be called; that importing does nothing."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("training", "serving", "loadtest")
CONTRACT = {
    f"serving.{name}"
    for name in (
        "errors",
        "manifest",
        "bundle",
        "preprocess",
        "postprocess",
        "schemas",
        "provenance",
        "server_plan",
        "processes",
        "whole_file",
    )
}
CONTRACT_MAY_USE = {"numpy", "PIL", "pydantic", "pydantic_core"}


def modules(folder: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> set[str]:
    """Every module that is imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def ours(name: str) -> bool:
    return name.split(".")[0] in (*STAGES, "trident", "model_repository")


@pytest.mark.parametrize("module", sorted(CONTRACT))
def test_contract_modules_import_little(module: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    for name in imports(path):
        top = name.split(".")[0]
        assert name in CONTRACT or top in CONTRACT_MAY_USE or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_training_imports_only_the_contract() -> None:
    for module, path in modules("training"):
        foreign = {name for name in imports(path) if ours(name) and not name.startswith("training")}
        assert foreign <= CONTRACT, f"{module} imports {foreign - CONTRACT}"


def test_serving_never_imports_training_or_the_load_test() -> None:
    for folder in ("serving", "model_repository"):
        for module, path in modules(folder):
            assert not {name for name in imports(path) if name.startswith(("training", "loadtest"))}, module


def test_the_load_test_imports_the_contract_and_the_clients() -> None:
    for module, path in modules("loadtest"):
        foreign = {name for name in imports(path) if ours(name) and not name.startswith("loadtest")}
        foreign = {name for name in foreign if not name.startswith("serving.clients")}
        assert foreign <= CONTRACT, f"{module} imports {foreign - CONTRACT}"


def test_nobody_imports_the_load_test_but_the_front_door() -> None:
    for folder in ("training", "serving", "model_repository"):
        for module, path in modules(folder):
            assert not any(name.startswith(("loadtest", "trident")) for name in imports(path)), module


def test_imports_have_no_cycles() -> None:
    graph = {}
    for stage in (*STAGES, "trident"):
        known = dict(modules(stage))
        for module, path in known.items():
            top_level = [
                node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            names = {node.module for node in top_level if isinstance(node, ast.ImportFrom)}
            graph[module] = {str(name) for name in names if name and ours(name)}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_folder_bears_a_librarys_name() -> None:
    taken = set(packages_distributions()) - {"training", "serving", "loadtest", "model_repository", "tests"}
    folders = {
        path.name
        for stage in (*STAGES, "model_repository", "trident", "tests")
        for path in (ROOT / stage).rglob("*")
        if path.is_dir()
    }
    assert not {name for name in folders - {"__pycache__"} if name in taken or name in sys.stdlib_module_names}


def test_importing_does_nothing() -> None:
    """No output, no files, no threads, no torch, from importing all of serving and training's settings."""
    names = [
        module
        for stage in ("serving",)
        for module, _ in modules(stage)
        if "backend" not in module and "__main__" not in module
    ]
    heavy = {"serving.torchserve_server.handler", "serving.runtimes.torchscript_module"}
    code = (
        f"import importlib, sys, threading\nfor name in {sorted(set(names) - heavy)!r}: importlib.import_module(name)\n"
    )
    code += "assert threading.active_count() == 1, threading.enumerate()\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "module", ["serving.runtimes.onnx_session", "training.export", "serving.torchserve_server.handler"]
)
def test_onnxruntime_sends_nothing_home(module: str, tmp_path: Path) -> None:
    """Its telemetry leaves a session file in the temporary folder as soon as it is imported, unless it is switched
    off.
    """
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    code = f"import {module}; import onnxruntime"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"TMPDIR": str(tmp_path)}, cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".ses").exists()


def test_constraints_name_exact_versions_and_no_address() -> None:
    for name in ("constraints.txt", "constraints-triton.txt", "constraints-peers.txt", "constraints-docs.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert "==" in line, line
            assert "/" not in line, line
