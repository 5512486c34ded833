"""Values of callers inside messages: short, and text that can be printed."""


def shorten_repr(value: object, *, longest: int = 300) -> str:
    """Return the repr of a value, cut, without lone surrogates; of one that has none, its type."""
    try:
        text = repr(value)
    except Exception:  # anything may be handed in, and a message about it must come out
        return f"a {type(value).__name__}"
    return printable(text if len(text) <= longest else text[:longest] + "…")


def printable(text: str) -> str:
    """Return a text that can be encoded; lone surrogates are written as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
