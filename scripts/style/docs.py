"""Figures and offenders of Markdown pages."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from style.figures import SENTENCE_WORDS, SourceLine, compute_p90, display_path
from style.names import DIALECT


def iterate_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a page with their lines, without code, tables and headings."""
    paragraph: list[str] = []
    start, in_code = 1, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        is_fence = line.lstrip().startswith("```")
        in_code ^= is_fence
        is_prose = bool(line.strip()) and not (
            is_fence or in_code or re.match(r"\s*[|#>]|!\[|<!--", line)
        )
        begins_item = bool(re.match(r"\s*([-*]|\d+\.) ", line))
        if paragraph and (not is_prose or begins_item):
            yield from split_sentences(" ".join(paragraph), start)
            paragraph = []
        if is_prose:
            start = start if paragraph else number
            paragraph.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line).strip())


def split_sentences(paragraph: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a paragraph; code counts as one word, a link as its text."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", paragraph))
    for sentence in re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\)?\s+", plain.replace("*", "")):
        if sentence.strip():
            yield line, sentence.strip()


def measure_docs(pages: Iterable[Path]) -> tuple[dict[str, float], dict[str, list[SourceLine]]]:
    """Return the figures and the offenders of Markdown pages."""
    words, lengths = 0, []
    long_sentences: list[SourceLine] = []
    dialect: list[SourceLine] = []
    for page in pages:
        file, text = display_path(page), page.read_text("utf-8")
        words += len(text.split())
        for line, sentence in iterate_sentences(text):
            lengths.append(len(sentence.split()))
            if lengths[-1] > SENTENCE_WORDS:
                long_sentences.append(
                    SourceLine(file, line, f"{lengths[-1]} words: {sentence[:60]}")
                )
        in_code = False
        for number, line_text in enumerate(text.splitlines(), 1):
            in_code ^= line_text.lstrip().startswith("```")
            if in_code:
                continue
            dialect += [
                SourceLine(file, number, match[0])
                for match in DIALECT.finditer(re.sub(r"`[^`]*`", "", line_text))
            ]
    figures: dict[str, float] = {
        "doc_words": words,
        "sentence_median": median(lengths) if lengths else 0,
        "sentence_p90": compute_p90(lengths),
        "doc_dialect": len(dialect),
    }
    return figures, {"sentence_p90": long_sentences, "doc_dialect": dialect}
