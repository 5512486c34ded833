"""Formatting of values of callers and servers: short and printable."""


def shorten_repr(value: object, *, longest: int = 300) -> str:
    """Return a truncated, printable repr of a value, or its type where repr fails."""
    try:
        text = repr(value)
    except Exception:  # callers pass anything, and the message about it must not fail
        return f"a {type(value).__name__}"
    return printable(text if len(text) <= longest else text[:longest] + "…")


def printable(text: str) -> str:
    """Return text that can be encoded; lone surrogates become escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def to_single_line(text: str) -> str:
    """Return text with a space for each control character, which could control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
