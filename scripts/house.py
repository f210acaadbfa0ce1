"""Print the figures of the house: files, lines, circles, imports that point up, long functions, the largest module.

    python scripts/house.py            # one line a figure
    python scripts/house.py --check    # exit code 1 where one is over its limit

The order of packages is the rule of `tests/test_imports.py`. Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMITS = {
    "Python files in mlmeta/": 126,
    "lines of Python in mlmeta/": 31_160,
    "circles of files": 0,
    "circles of packages": 0,
    "imports that point up": 0,
    "functions over 50 lines": 0,
    "lines of the largest module": 500,
}


@cache
def list_modules() -> dict[str, Path]:
    """Return the file of each module by its name inside mlmeta: ``commands.params``, ``cli``."""
    files = sorted((ROOT / "mlmeta").rglob("*.py"))
    return {".".join(f.relative_to(ROOT / "mlmeta").with_suffix("").parts).removesuffix(".__init__"): f for f in files}


@cache
def read_tree(module: str) -> ast.Module:
    """Return the syntax of a module."""
    return ast.parse(list_modules()[module].read_text(encoding="utf-8"))


def list_imports(module: str, *, when_imported: bool = False) -> set[str]:
    """Return the full names that a module imports; only what its own import runs, or all."""
    nodes = read_tree(module).body if when_imported else ast.walk(read_tree(module))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def list_arrows() -> dict[str, set[str]]:
    """Return which modules of mlmeta each imports; a package itself is its ``__init__``."""
    return {module: set(_find_modules(module)) for module in list_modules()}


def _find_modules(module: str) -> Iterator[str]:
    for name in list_imports(module):
        parts = name.split(".")
        found = [".".join(parts[1:k]) or "__init__" for k in range(len(parts), 0, -1) if parts[0] == "mlmeta"]
        target = next((one for one in found if one in list_modules()), None)
        if target not in (None, module):
            yield str(target)


def find_circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of names that reach each other."""
    reached = {name: _reach(name, arrows) for name in arrows}
    groups = {frozenset(o for o in reached[n] if n in reached[o]) for n in arrows if n in reached[n]}
    return sorted(sorted(group) for group in groups)


def _reach(name: str, arrows: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    open_names = [name]
    while open_names:
        new = arrows[open_names.pop()] - seen
        seen |= new
        open_names += new
    return seen


def package_of(module: str) -> str:
    """Return the package that a module stands in, or its own name at the top."""
    return module.split(".")[0]


def find_climbs(floors: list[set[str]]) -> list[str]:
    """Return the imports that do not point down: to a higher floor, or to a neighbour on the same one."""
    height = {package: floor for floor, packages in enumerate(floors) for package in packages}
    pairs = [(a, b, package_of(a), package_of(b)) for a, others in list_arrows().items() for b in others]
    return sorted(f"{a} imports {b}" for a, b, own, other in pairs if own != other and height[other] >= height[own])


def measure_house() -> dict[str, int]:
    """Return each figure by its name in `LIMITS`."""
    sys.path.append(str(ROOT / "tests"))
    from test_imports import FLOORS

    lines = {m: len(f.read_text(encoding="utf-8").splitlines()) for m, f in list_modules().items()}
    arrows = list_arrows()
    packages: dict[str, set[str]] = {package_of(module): set() for module in arrows}
    for module, others in arrows.items():
        packages[package_of(module)] |= {package_of(other) for other in others} - {package_of(module)}
    functions = [
        node.end_lineno - node.lineno + 1
        for module in arrows
        for node in ast.walk(read_tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    figures = [
        sum(file.name != "__init__.py" for file in list_modules().values()),
        sum(lines.values()),
        len(find_circles(arrows)),
        len(find_circles(packages)),
        len(find_climbs(FLOORS)),
        sum(length > 50 for length in functions),
        max(lines.values()),
    ]
    return dict(zip(LIMITS, figures, strict=True))


def main() -> None:
    """Print the figures."""
    figures = measure_house()
    for name, figure in figures.items():
        print(f"{figure:>7,}  {name} (at most {LIMITS[name]:,})")
    sys.exit("--check" in sys.argv and any(figure > LIMITS[name] for name, figure in figures.items()))


if __name__ == "__main__":
    main()
