"""Complexity of functions, and imports between modules."""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path


def measure_complexity(function: ast.AST) -> int:
    """Return McCabe's cyclomatic complexity as ruff's C901 counts it: one plus the decisions.

    Decisions are branches, loops and their ``else``, exception handlers, ``match`` cases, and
    nested functions with their own decisions. Boolean operators and comprehensions are none.
    """
    return 1 + sum(count_decisions(child) for child in getattr(function, "body", []))


def count_decisions(node: ast.AST) -> int:
    own = 0
    match node:
        case ast.If():
            own = 1
        case ast.For() | ast.AsyncFor() | ast.While():
            own = 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            own = len(node.handlers) + bool(node.orelse)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            own = 1
        case ast.Match():
            last = node.cases[-1]
            has_default = (
                last.guard is None
                and isinstance(last.pattern, ast.MatchAs)
                and last.pattern.pattern is None
            )
            own = len(node.cases) - has_default
        case ast.expr():
            return 0
    return own + sum(count_decisions(child) for child in ast.iter_child_nodes(node))


def get_module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_imports(
    tree: ast.Module, module: str, is_package: bool, known: Mapping[str, Path]
) -> set[str]:
    """Return the known modules that a module imports, except under ``if TYPE_CHECKING``."""
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                pending += node.orelse
                continue
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parents = package.split(".")
                    kept = parents[: len(parents) - node.level + 1]
                    base = ".".join([*kept, *([base] if base else [])])
                for alias in node.names:
                    submodule = f"{base}.{alias.name}"
                    found.add(submodule if submodule in known else base)
        pending += ast.iter_child_nodes(node)
    return {name for name in found if name in known and name != module}


def find_cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other.

    They are the strongly connected components of two or more modules, by Tarjan's algorithm.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            start = stack.index(module)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                cycles.append(component)

    sys.setrecursionlimit(10_000)
    for module in sorted(graph):
        if module not in index:
            visit(module)
    return sorted(cycles)
