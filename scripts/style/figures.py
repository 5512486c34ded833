"""Titles of the figures, and what all measurements share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[2]
LINE_COLUMNS = 100
COMPLEXITY = 15
SENTENCE_WORDS = 30


TITLES = {
    "code_lines": "lines of code",
    "functions": "functions",
    "function_median": "function length, median lines",
    "function_p90": "function length, p90 lines",
    "one_word_functions": "one-word function names, %",
    "participles": "participle function names, %",
    "x_of": "x_of function names, %",
    "question_docstrings": "docstrings that open with What/Whether/How, %",
    "duplicate_classes": "class names defined more than once",
    "duplicate_classes_share": "the same, % of class names",
    "modules_per_folder": "modules in the fullest folder",
    "complexity": "cyclomatic complexity, maximum",
    "complex_functions": f"functions above complexity {COMPLEXITY}",
    "longest_line": "longest line, columns",
    "long_lines": f"lines above {LINE_COLUMNS} columns",
    "banned_words": "banned words in identifiers",
    "dialect": "dialect words in comments, docstrings and messages",
    "test_dialect": "the same in tests, benchmarks and examples",
    "import_cycles": "import cycles between modules",
    "doc_words": "words of docs",
    "sentence_median": "sentence length in docs, median words",
    "sentence_p90": "sentence length in docs, p90 words",
    "doc_dialect": "dialect words in docs",
}


@dataclass(frozen=True)
class SourceLine:
    """One entry: where it is, and what it is."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def display_path(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


def compute_percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def compute_p90(values: Sequence[int]) -> float:
    return (
        round(quantiles(values, n=10, method="inclusive")[-1], 1)
        if len(values) > 1
        else sum(values)
    )
