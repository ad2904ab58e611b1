"""The architecture: who may import whom, no cycles, folder names, and imports without side effects."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In the order of the data. Each may import those on the right, and itself.
MAY_IMPORT = {
    "bundle": (),
    "training": ("bundle",),
    "serving": ("bundle",),
    "model_repository": ("bundle", "serving"),
    "loadtest": ("bundle", "serving.clients", "serving.processes"),
    "trident": ("bundle", "training", "serving", "loadtest"),
}
BUNDLE_MAY_USE = {"numpy", "PIL", "pydantic", "pydantic_core", "simplejpeg"}


def modules(folder: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(node: ast.AST, path: Path) -> set[str]:
    """The modules that an import statement names; `from package import module` names the module."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"{path}: relative import"
    assert node.module is not None
    names = {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if is_module(name) else node.module for name in names}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path, *, at_start: bool = False) -> set[str]:
    """Every module that a file imports; `at_start`: only those that are imported with it, not inside functions."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_start else ast.walk(tree)
    return {name for node in nodes for name in imported(node, path)}


def ours(name: str) -> bool:
    return name.split(".")[0] in MAY_IMPORT


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_comes_before_it(folder: str) -> None:
    allowed = (folder, *MAY_IMPORT[folder])
    for module, path in modules(folder):
        foreign = {name for name in imports(path) if ours(name)}
        wrong = {name for name in foreign if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)}
        assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


def test_the_bundle_uses_few_libraries() -> None:
    for module, path in modules("bundle"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in (*BUNDLE_MAY_USE, "bundle") or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_modules_have_no_cycles() -> None:
    graph = {
        module: {name for name in imports(path, at_start=True) if ours(name) and name != module}
        for folder in MAY_IMPORT
        for module, path in modules(folder)
    }
    assert_acyclic(graph)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_have_no_cycles(folder: str) -> None:
    """Of a package's folders and modules, no two import each other, not even indirectly or inside a function."""
    packages = {module for module, path in modules(folder) if path.name == "__init__.py"}
    for package in packages:
        graph: dict[str, set[str]] = {}
        for module, path in modules(folder):
            source = child(module, package)
            if source is not None:
                targets = {child(name, package) for name in imports(path)} - {None, source}
                graph.setdefault(source, set()).update(target for target in targets if target is not None)
        assert_acyclic(graph)


def child(module: str, package: str) -> str | None:
    """The folder or module directly inside `package` that a module belongs to."""
    if not module.startswith(f"{package}."):
        return None
    return f"{package}.{module.removeprefix(f'{package}.').split('.')[0]}"


def assert_acyclic(graph: Mapping[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> None:
        assert node not in path, " -> ".join((*path[path.index(node) :], node))
        if node not in done:
            for name in sorted(graph.get(node, ())):
                visit(name, (*path, node))
            done.add(node)

    for node in graph:
        visit(node, ())


def test_no_folder_has_a_librarys_name() -> None:
    taken = set(packages_distributions()) - {*MAY_IMPORT, "tests"}
    folders = {path.name for folder in (*MAY_IMPORT, "tests") for path in (ROOT / folder).rglob("*") if path.is_dir()}
    assert not {name for name in folders - {"__pycache__"} if name in taken or name in sys.stdlib_module_names}


def test_importing_does_nothing() -> None:
    """No output, no files, no threads, no torch, from importing all of serving and training's settings."""
    names = [
        module
        for stage in ("serving",)
        for module, _ in modules(stage)
        if "backend" not in module and "__main__" not in module
    ]
    heavy = {
        "serving.torchserve_server.handler",
        "serving.runtimes.torchscript_module",
        "serving.runtimes.static_batches",
    }
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


@pytest.mark.parametrize("module", ["serving.runtimes.openvino_model", "training.formats"])
def test_openvino_sends_nothing_home(module: str, tmp_path: Path) -> None:
    """Its package makes up a client id in the home folder as soon as it is imported, unless its telemetry is absent."""
    code = f"import {module}; import openvino; assert openvino.convert_model"
    outside = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=outside | {"HOME": str(tmp_path)}, cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_constraints_name_exact_versions_and_no_address() -> None:
    for name in ("constraints.txt", "constraints-triton.txt", "constraints-peers.txt", "constraints-docs.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert "==" in line, line
            assert "/" not in line, line
