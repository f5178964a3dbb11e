# SPDX-License-Identifier: Apache-2.0
"""The layout of ARCHITECTURE.md, held against the tree: links, import direction, Ray's places, quiet imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "comm", "workers", "proto", "cluster")
# First match wins; a path is relative to the root, a module's path follows from its name.
LEVELS = (
    ("distributed_fi/errors.py", 0),
    ("distributed_fi/config.py", 0),
    ("distributed_fi/env.py", 0),
    ("distributed_fi/mesh.py", 0),
    ("distributed_fi/plan/", 0),
    ("proto/", 0),
    ("kernels/check.py", 1),
    ("kernels/dispatch/", 1),
    ("kernels/jit/", 1),
    ("kernels/", 2),
    ("comm/", 3),
    ("workers/", 4),
    ("distributed_fi/models/", 4),
    ("distributed_fi/cli/", 7),
    ("distributed_fi/__main__.py", 7),
    ("distributed_fi/", 5),
    ("cluster/", 6),
)
RAY_PLACES = ("comm/bootstrap/ray.py", "workers/", "distributed_fi/coordinator/", "distributed_fi/cli/", "cluster/")


def source_files() -> list[Path]:
    tops = [ROOT / "distributed_fi", *(ROOT / f for f in FOLDERS)]
    return sorted(p.relative_to(ROOT) for top in tops for p in top.rglob("*.py") if not _behind_link(p))


def _behind_link(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def level_of(path: str) -> int:
    return next(level for prefix, level in LEVELS if path.startswith(prefix))


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports (inside functions too, but not for type checking only), with their lines."""
    tree = ast.parse((ROOT / path).read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def path_of(module: str) -> str | None:
    """Where `distributed_fi.a.b[.name]` lives, relative to the root; None for other distributions."""
    parts = module.split(".")
    if parts[0] != "distributed_fi":
        return None
    parts = parts[1:] if len(parts) > 1 and parts[1] in FOLDERS else parts
    return "/".join(parts) + ("/" if len(parts) == 1 else "")


def home_level(module: str) -> int | None:
    path = path_of(module)
    if path is None:
        return None
    for candidate in (path + ".py", path + "/", path.rpartition("/")[0] + ".py", path.rpartition("/")[0] + "/"):
        if (ROOT / candidate).exists():
            return level_of(candidate)
    raise AssertionError(f"{module}: no such module in the tree")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_a_link_into_the_package_and_shadows_no_distribution(folder: str) -> None:
    link = ROOT / "distributed_fi" / folder
    assert os.readlink(link) == f"../{folder}"
    assert link.is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_file_imports_only_its_own_level_or_lower(path: Path) -> None:
    mine = level_of(str(path))
    upward = [
        f"{path}:{line} (level {mine}) imports {module} (level {level})"
        for module, line in imported_modules(path)
        if (level := home_level(module)) is not None and level > mine
    ]
    # The package's own __init__ names its exports for type checkers and loads them by name, lazily.
    assert upward == []


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_ray_and_environment_are_used_only_where_they_belong(path: Path) -> None:
    modules = {module.split(".")[0] for module, _ in imported_modules(path)}
    if not str(path).startswith(RAY_PLACES):
        assert "ray" not in modules
    if str(path) != "distributed_fi/env.py":
        assert "os.environ" not in (ROOT / path).read_text()


def test_every_module_imports_without_side_effects(tmp_path: Path) -> None:
    """No CUDA start, no Ray, no process, no file: in a fresh interpreter with an empty home and cwd."""
    modules = [
        ".".join(("distributed_fi", *(p.parts if p.parts[0] != "distributed_fi" else p.parts[1:])))
        .removesuffix(".py")
        .removesuffix(".__init__")
        for p in source_files()
        if p.name != "__main__.py"
    ]
    script = f"""
import importlib, os, subprocess, sys, threading
def forbidden(*args, **kwargs): raise RuntimeError("a process was started on import")
threads, handlers = threading.active_count(), {{}}
subprocess.Popen.__init__ = forbidden
for name in {modules!r}:
    importlib.import_module(name)
import torch
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
if "ray" in sys.modules:
    assert not sys.modules["ray"].is_initialized()
assert threading.active_count() == threads, threading.enumerate()
assert os.listdir(os.environ["HOME"]) == [], os.listdir(os.environ["HOME"])
"""
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    script = (
        "import sys, distributed_fi; dir(distributed_fi); print(*{'torch', 'ray', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_loads() -> None:
    import distributed_fi

    for name in distributed_fi.__all__:
        assert getattr(distributed_fi, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        distributed_fi.no_such_name  # noqa: B018


@pytest.mark.parametrize("init", [p for p in source_files() if p.name == "__init__.py"], ids=str)
def test_no_package_exports_a_name_equal_to_one_of_its_submodules(init: Path) -> None:
    folder = (ROOT / init).parent
    submodules = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}
    tree = ast.parse((ROOT / init).read_text())
    bound = {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
    exported = bound | {
        c.value for n in ast.walk(tree) if isinstance(n, ast.List) for c in n.elts if isinstance(c, ast.Constant)
    }
    assert exported & submodules == set()
