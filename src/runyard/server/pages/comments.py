"""Leave out the comments of scripts and style sheets, which state their types there as well.

What is left means the same and has the same lines, so that an error names the line of the source.
Indentation goes, too, but for texts of several lines; names stay.
"""

import re

_STYLE_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?\*/)|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?P<space>\n\s*)""", re.DOTALL
)
_SCRIPT_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<space>\s+)|[\w$]+"""
    r"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|.""",
    re.DOTALL,
)
# From a backtick, or the brace that ends an expression, to the next expression or the end.
_TEMPLATE = re.compile(r"[`}](?:[^`\\$]|\\.|\$(?!\{))*(?:`|\$\{)", re.DOTALL)
_REGULAR_EXPRESSION = re.compile(r"/(?![*/])(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/\w*")
# After these a slash begins a regular expression; after anything else it divides.
_BEFORE_EXPRESSION = frozenset("(,=:[!&|?{};+-*%<>~^") | {"return", "typeof", "case", "of", "in"}


def remove_from_style(text: str) -> str:
    """Return a style sheet without comments and indentation."""
    return _STYLE_TOKEN.sub(_shorten, text)


def remove_from_script(text: str) -> str:
    """Return a script without comments and indentation."""
    parts: list[str] = []
    depths: list[int] = []  # of braces, in each open expression of a template
    before, position = ";", 0
    while position < len(text):
        ends_expression = text[position] == "}" and depths and not depths[-1]
        pattern = _SCRIPT_TOKEN
        if ends_expression or text[position] == "`":
            pattern = _TEMPLATE
        elif before in _BEFORE_EXPRESSION and _REGULAR_EXPRESSION.match(text, position):
            pattern = _REGULAR_EXPRESSION
        token = pattern.match(text, position)
        if token is None:  # a template that does not end
            return text
        position = token.end()
        parts.append(_shorten(token) if pattern is _SCRIPT_TOKEN else token[0])
        if not parts[-1].strip():
            continue
        before = "{" if pattern is _TEMPLATE and token[0].endswith("${") else token[0]
        if ends_expression:
            depths.pop()
        if pattern is _TEMPLATE and before == "{":
            depths.append(0)
        elif depths and before in ("{", "}") and not ends_expression:
            depths[-1] += 1 if before == "{" else -1
    return "".join(parts)


def _shorten(token: re.Match[str]) -> str:
    text, lines = token[0], token[0].count("\n")
    if token["comment"] is not None:
        return "\n" * lines or (" " if text.startswith("/*") else "")
    if token["space"] is not None:
        return "\n" * lines or text
    return text
