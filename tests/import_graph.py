"""The import graph between the folders of `sfactory/`, read from the source.

    python tests/import_graph.py [FOLDER]      number of rooms, import arrows, upward arrows and cycles of a checkout

A room is a folder or a single file directly inside `sfactory/`. An arrow means that some file of one room imports
something of the other. Imports inside functions count; imports under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

ORDER: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "__main__",
        "cli",
        "api",
        "population tools",
        "supervisor",
        "workers",
        "play",
        "run",
        "learning monitor",
        "native",
        "device config",
        "algo model shm envs",
        "pickled",
        "files families",
        "errors",
        "_version _moved",
    )
)
"""Rooms from the top to the bottom. A room imports only rooms of later entries, never one of its own entry."""

Arrow = tuple[str, str]


def modules(root: Path) -> dict[str, Path]:
    """Dotted module name -> file, of everything in `root/sfactory`."""
    found = {}
    for path in sorted((root / "sfactory").rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache  # reading all files takes 0.3 s, and many tests ask
def imported_names(path: Path, top_level_only: bool = False, type_checking: bool = False) -> frozenset[str]:
    """Every name a file imports, as `package.module` and `package.module.attribute`."""
    found: set[str] = set()
    for node in _import_nodes(ast.parse(path.read_text()), top_level_only, type_checking):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(found)


def _import_nodes(tree: ast.AST, top_level_only: bool, type_checking: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not type_checking:
            continue
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)):
            yield from _import_nodes(node, top_level_only, type_checking)


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def room(module: str) -> str:
    """sfactory.learning.update -> learning; the package itself -> ''."""
    return (module.split(".") + [""])[1]


def module_arrows(root: Path) -> set[Arrow]:
    """(importing module, imported module), both inside sfactory."""
    known = modules(root)
    arrows = set()
    for name, path in known.items():
        targets = {target for target in imported_names(path) if target in known}
        for target in targets - {name, "sfactory"}:
            if not (is_package(known[target]) and any(t.startswith(f"{target}.") for t in targets)):
                arrows.add((name, target))  # "from package import module" is an arrow to the module alone
    return arrows


def room_arrows(root: Path) -> set[Arrow]:
    """(importing room, imported room); the package's own `__init__` is no room: it imports on demand."""
    pairs = {(room(a), room(b)) for a, b in module_arrows(root)}
    return {(a, b) for a, b in pairs if a and b and a != b}


def rooms(root: Path) -> set[str]:
    return {room(name) for name in modules(root)} - {""}


def upward(arrows: set[Arrow], order: tuple[frozenset[str], ...] = ORDER) -> set[Arrow]:
    """Arrows that point to the same or an earlier entry of the order."""
    level = {name: index for index, names in enumerate(order) for name in names}
    return {(a, b) for a, b in arrows if level[a] >= level[b]}


def cycles(arrows: set[Arrow]) -> list[set[str]]:
    """Strongly connected components of two or more nodes (Tarjan 1972)."""
    edges: dict[str, list[str]] = {}
    for a, b in sorted(arrows):
        edges.setdefault(a, []).append(b)
        edges.setdefault(b, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component: set[str] = set()
            while node not in component:
                component.add(stack.pop())
            if len(component) > 1:
                found.append(component)

    for node in edges:
        if node not in index:
            visit(node)
    return found


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    arrows = room_arrows(root)
    known = {name for names in ORDER for name in names}
    print(f"rooms {len(rooms(root))}")
    print(f"import arrows between rooms {len(arrows)}")
    if rooms(root) <= known:
        print(f"upward arrows {len(upward(arrows))} {sorted(upward(arrows)) or ''}")
    print(f"cycles between rooms {len(cycles(arrows))} {[sorted(c) for c in cycles(arrows)] or ''}")
    print(f"cycles between modules {len(cycles(module_arrows(root)))}")


if __name__ == "__main__":
    main()
