"""The extras of the package, and the message for one that is not installed.

The wheel without extras contains all code of Runyard but only the libraries of the SDK. Standard
library only: this module must work when everything else is missing.
"""

# Import names by extra. A library of two extras is listed under the one whose code imports it
# first.
IMPORTS = {
    "server": (
        "alembic",
        "click",
        "google_crc32c",
        "granian",
        "PIL",
        "pyarrow",
        "sqlalchemy",
        "yaml",
    ),
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
    """Return the extra that installs a module; None if no extra does."""
    root = module.partition(".")[0]
    return next((extra for extra, names in IMPORTS.items() if root in names), None)


def explain_missing_extra(error: BaseException) -> str | None:
    """Return the message for an import that failed because of a missing extra.

    None for any other error.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    extra = find_extra(error.name)
    if extra is None:
        return None
    return (
        f"this needs the package {error.name.partition('.')[0]!r}, which is not installed; "
        f"{install_command(extra)}"
    )


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"try: pip install 'runyard[{extra}]'"
