"""Which extra of the package brings which library, so that a missing one is reported with the command to install it.

The wheel without extras holds all of Runyard's code and only the libraries of the SDK. Standard library alone: this
module reports that everything else is missing.
"""

# Import names by extra. A library that two extras bring is listed under the one whose code imports it first.
IMPORTS = {
    "server": ("alembic", "click", "google_crc32c", "granian", "litestar", "PIL", "pyarrow", "sqlalchemy"),
    "postgres": ("psycopg", "psycopg_binary"),
    "quantization": ("bitsandbytes",),
    "train": (
        "accelerate",
        "faster_coco_eval",
        "jinja2",
        "numpy",
        "peft",
        "rapidfuzz",
        "safetensors",
        "sklearn",
        "snowballstemmer",
        "tokenizers",
        "torch",
        "transformers",
    ),
}


def find_extra(module: str) -> str | None:
    """Return the extra that brings a module; None for one that no extra brings."""
    root = module.partition(".")[0]
    return next((extra for extra, names in IMPORTS.items() if root in names), None)


def explain_missing_extra(error: BaseException) -> str | None:
    """Return the sentence for an import that failed because an extra is not installed; None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    extra = find_extra(error.name)
    if extra is None:
        return None
    return f"this needs the package {error.name.partition('.')[0]!r}, which is not installed; {install_command(extra)}"


def install_command(extra: str) -> str:
    """Return the fix for a missing extra."""
    return f"try: pip install 'runyard[{extra}]'"
