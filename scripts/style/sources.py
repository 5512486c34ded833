"""Figures and offenders of Python files.

Code that ``scripts/unasync`` generates is left out, so that nothing counts twice.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

from style.figures import (
    COMPLEXITY,
    LINE_COLUMNS,
    SourceLine,
    compute_p90,
    compute_percent,
    display_path,
)
from style.names import DIALECT, QUESTION, has_banned_word, is_dunder, is_one_word, is_participle
from style.structure import find_cycles, find_imports, get_module_name, measure_complexity

# Names in prose are not words: code in backticks, options, and expressions of f-strings. Neither is
# a string of one word, such as a JSON key.
_NAME = re.compile(r"`[^`\n]+`|--[a-z][\w-]*|\{[^{}\n]*\}")
_KEY = re.compile(r"[a-zA-Z]*([\"'])[\w./-]*\1")
# Pragmas at the end of a line do not count, as in ruff's E501.
_PRAGMA = re.compile(r"  # (noqa|type: ignore|fmt: skip)\b.*")

Documented = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Function:
    """A function or method; ``name`` is qualified in its module, such as ``Loop.run_step``."""

    name: str
    file: str
    line: int
    lines: int
    complexity: int
    is_property: bool

    @property
    def own_name(self) -> str:
        return self.name.rpartition(".")[2]

    def make_entry(self, text: str) -> SourceLine:
        return SourceLine(self.file, self.line, text)


@dataclass
class Report:
    """Everything measured in some source folders."""

    code_lines: int = 0
    functions: list[Function] = field(default_factory=list)
    docstrings: list[SourceLine] = field(default_factory=list)
    classes: list[SourceLine] = field(default_factory=list)
    folders: Counter[str] = field(default_factory=Counter)
    longest_line: int = 0
    long_lines: list[SourceLine] = field(default_factory=list)
    banned: list[SourceLine] = field(default_factory=list)
    dialect: list[SourceLine] = field(default_factory=list)
    cycles: list[list[str]] = field(default_factory=list)

    @cached_property
    def named_functions(self) -> list[Function]:
        """Return the functions without dunder methods and properties, which may be nouns."""
        return [
            each for each in self.functions if not is_dunder(each.own_name) and not each.is_property
        ]

    def list_offenders(self) -> dict[str, list[SourceLine]]:
        """Return the offenders of each metric, by its name in ``style-limits.toml``."""
        named = self.named_functions
        class_counts = Counter(entry.text for entry in self.classes)
        return {
            "one_word_functions": [
                each.make_entry(each.name) for each in named if is_one_word(each.own_name)
            ],
            "participles": [
                each.make_entry(each.name) for each in named if is_participle(each.own_name)
            ],
            "x_of": [each.make_entry(each.name) for each in named if each.own_name.endswith("_of")],
            "question_docstrings": [
                entry for entry in self.docstrings if QUESTION.match(entry.text)
            ],
            "duplicate_classes": [entry for entry in self.classes if class_counts[entry.text] > 1],
            "modules_per_folder": [
                SourceLine(folder, 1, f"{count} modules")
                for folder, count in self.folders.most_common(3)
            ],
            "complexity": [
                each.make_entry(f"{each.name} has complexity {each.complexity}")
                for each in sorted(self.functions, key=lambda each: -each.complexity)
                if each.complexity > COMPLEXITY
            ],
            "longest_line": sorted(self.long_lines, key=lambda entry: -int(entry.text.split()[0])),
            "banned_words": self.banned,
            "dialect": self.dialect,
            "import_cycles": [
                SourceLine(cycle[0], 1, " <-> ".join(cycle)) for cycle in self.cycles
            ],
        }

    def compute_figures(self) -> dict[str, float]:
        """Return each figure of the table, in its order."""
        lengths = [each.lines for each in self.functions]
        offenders = self.list_offenders()
        named = len(self.named_functions)
        duplicates = len({entry.text for entry in offenders["duplicate_classes"]})
        return {
            "code_lines": self.code_lines,
            "functions": len(self.functions),
            "function_median": median(lengths) if lengths else 0,
            "function_p90": compute_p90(lengths),
            "one_word_functions": compute_percent(len(offenders["one_word_functions"]), named),
            "participles": compute_percent(len(offenders["participles"]), named),
            "x_of": compute_percent(len(offenders["x_of"]), named),
            "question_docstrings": compute_percent(
                len(offenders["question_docstrings"]), len(self.docstrings)
            ),
            "duplicate_classes": duplicates,
            "duplicate_classes_share": compute_percent(
                duplicates, len({entry.text for entry in self.classes})
            ),
            "modules_per_folder": max(self.folders.values(), default=0),
            "complexity": max((each.complexity for each in self.functions), default=0),
            "complex_functions": len(offenders["complexity"]),
            "longest_line": self.longest_line,
            "long_lines": len(self.long_lines),
            "banned_words": len(self.banned),
            "dialect": len(self.dialect),
            "import_cycles": len(self.cycles),
        }


def list_source_files(folder: Path) -> list[Path]:
    """Return the Python files below a folder, without those that ``scripts/unasync`` generates."""
    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if not (
            path.name.endswith("_sync.py")
            and path.with_name(path.name[: -len("_sync.py")] + "_async.py").exists()
        )
    ]


def count_code_lines(text: str, tree: ast.AST) -> int:
    """Return the number of lines that hold code: no blank lines, no comments, no docstrings."""
    ignored = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def find_dialect(text: str, file: str) -> Iterator[SourceLine]:
    """Yield each dialect word in the comments and strings of a Python file."""
    kinds = {
        tokenize.COMMENT,
        tokenize.STRING,
        getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING),
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds and not _KEY.fullmatch(token.string):
            text = _NAME.sub("", token.string)
            for match in DIALECT.finditer(text):
                line = token.start[0] + text.count("\n", 0, match.start())
                yield SourceLine(file, line, match[0])


def iterate_defined_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that the code defines, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
    return not names.isdisjoint({"property", "cached_property", "setter"})


def collect_definitions(node: ast.AST, file: str, scope: str, report: Report) -> None:
    """Add the functions, classes and docstrings below a node to the report."""
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{scope}{child.name}."
            add_docstring(child, file, report)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            report.functions.append(
                Function(
                    inner[:-1],
                    file,
                    child.lineno,
                    lines,
                    measure_complexity(child),
                    is_property(child),
                )
            )
        elif isinstance(child, ast.ClassDef):
            report.classes.append(SourceLine(file, child.lineno, child.name))
        collect_definitions(child, file, inner, report)


def add_docstring(node: Documented, file: str, report: Report) -> None:
    docstring = ast.get_docstring(node)
    if docstring:
        report.docstrings.append(
            SourceLine(file, node.body[0].lineno, docstring.partition("\n")[0])
        )


def measure_folders(folders: Sequence[Path]) -> Report:
    """Return the report on the Python files below some folders, each a root of imports."""
    report = Report()
    modules: dict[str, Path] = {}
    trees: dict[str, ast.Module] = {}
    for folder in folders:
        for path in list_source_files(folder):
            file = display_path(path)
            text = path.read_text("utf-8")
            tree = ast.parse(text)
            module = get_module_name(path, folder)
            modules[module], trees[module] = path, tree
            report.code_lines += count_code_lines(text, tree)
            add_docstring(tree, file, report)
            collect_definitions(tree, file, "", report)
            if path.name != "__init__.py":
                report.folders[display_path(path.parent)] += 1
            for number, line in enumerate(text.splitlines(), 1):
                columns = len(_PRAGMA.sub("", line))
                report.longest_line = max(report.longest_line, columns)
                if columns > LINE_COLUMNS:
                    report.long_lines.append(SourceLine(file, number, f"{columns} columns"))
            names = [(path.stem, 1), *iterate_defined_names(tree)]
            report.banned += [
                SourceLine(file, line, name)
                for name, line in dict.fromkeys(names)
                if has_banned_word(name)
            ]
            report.dialect += find_dialect(text, file)
    graph = {
        module: find_imports(trees[module], module, path.name == "__init__.py", modules)
        for module, path in modules.items()
    }
    report.cycles = find_cycles(graph)
    return report
