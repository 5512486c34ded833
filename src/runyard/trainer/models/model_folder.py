"""Checks of a model folder, before any library opens it.

A folder of weights is untrusted data. It may not choose code: its ``model_type`` must be in our
table, none of its files may name modules to import, and no file may be a program or a pickle. It
may not exhaust memory either: the size of files that libraries read whole is limited, and the
headers of safetensors files are checked against the file.
"""

import contextlib
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runyard.flows.families import find_family
from runyard.model_folders import ADAPTER_CONFIG, SETTING, ModelFolders
from runyard.rundir import MODEL_ADAPTER, read_json
from runyard.trainer.errors import InvalidFlow

FORBIDDEN_SUFFIXES = (
    ".py",
    ".pyc",
    ".so",
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npy",
)
FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "custom_generate", "custom_pipelines")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA = "LORA"  # other kinds read further files
MODULE_CHOICE = "megatron_config"  # if given, peft imports a module that the adapter names
MAX_JSON_BYTES = 64 << 20  # tokenizer.json of the largest vocabularies has about 20 MiB
MAX_TEMPLATE_BYTES = 256 << 10
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_FILES = 10_000
# Tokenizers save its original path, and nothing reads it.
_IGNORED_KEYS = ("special_tokens_map_file",)
BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def check_model_folder(folder: Path) -> str:
    """Check a model folder and return its ``model_type``.

    Raises:
        InvalidFlow: the folder is missing, of an unknown family, or has forbidden content.
    """
    if not folder.is_dir():
        raise InvalidFlow(
            f"model folder {str(folder)!r} does not exist; try: a folder with config.json and "
            "safetensors"
        )
    files = list(_list_files(folder))
    config = _read_config(folder)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or find_family(model_type) is None:
        raise InvalidFlow(
            f"model_type {model_type!r} in {folder.name}/config.json is not a known family"
        )
    weights = 0
    for path in files:
        # Libraries would load weights from the folder that it names.
        if path.name == ADAPTER_CONFIG:
            raise InvalidFlow(
                f"{ADAPTER_CONFIG} is not allowed in a model folder; try: put the adapter into "
                f"{MODEL_ADAPTER}"
            )
        _check_file(path, path.relative_to(folder).as_posix(), kind="a model folder")
        weights += path.suffix == ".safetensors"
    if not weights:
        raise InvalidFlow(f"model folder {folder.name} has no safetensors weights")
    return model_type


def check_inside(folder: Path, folders: ModelFolders) -> None:
    """Check that a folder is at its real path, and that no link in it leads out of the model
    folders.

    Raises:
        InvalidFlow: it is elsewhere; the message names the setting, never the target.
    """
    if folders.resolve(folder) != folder:
        raise InvalidFlow(
            f"model folder {folder.name} is not in a folder of this machine's setting {SETTING}"
        )
    for path in _list_entries(folder):
        if path.is_symlink() and folders.resolve(path) is None:
            where = path.relative_to(folder).as_posix()
            raise InvalidFlow(
                f"{where} in {folder.name} is a link out of the folders of the setting {SETTING}"
            )


@contextlib.contextmanager
def read_inside(folder: Path, folders: ModelFolders | None) -> Iterator[None]:
    """Check before and after reading a folder that no link leads out of the model folders.

    None stands for a folder that is not among them. Raises InvalidFlow, see ``check_inside``.
    """
    if folders is not None:
        check_inside(folder, folders)
    yield
    if folders is not None:
        check_inside(folder, folders)


def check_adapter_folder(folder: Path) -> None:
    """Check that an adapter is a LoRA in safetensors and does not choose code.

    Raises:
        InvalidFlow: the folder is missing or has forbidden content.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise InvalidFlow(
                f"adapter folder {str(folder)!r} has no {name}; try: a folder saved by peft"
            )
    for path in _list_files(folder):
        _check_file(path, path.relative_to(folder).as_posix(), kind="an adapter folder")
    config = read_json(folder / ADAPTER_CONFIG) or {}
    if (found := config.get("peft_type", LORA)) != LORA:
        raise InvalidFlow(f"{ADAPTER_CONFIG} has peft_type {found!r}; expected {LORA!r}")
    if config.get(MODULE_CHOICE) is not None:
        raise InvalidFlow(f"{ADAPTER_CONFIG} has {MODULE_CHOICE!r}: an adapter may not choose code")


def check_safetensors(path: Path, where: str) -> None:
    """Check that a header is small enough, names no tensor twice, and matches the file's size.

    Raises InvalidFlow.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidFlow(
                f"{where} is not a safetensors file: its header would have {length} bytes"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidFlow(f"{where} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise InvalidFlow(
            f"{where} has a safetensors header that is not a table of at most {MAX_TENSORS} tensors"
        )
    end = 0
    for begin, stop in sorted(
        _parse_span(name, entry, where) for name, entry in header.items() if name != "__metadata__"
    ):
        if begin != end:
            raise InvalidFlow(f"{where} has tensors that overlap or leave a gap at byte {begin}")
        end = stop
    if end != size - 8 - length:
        raise InvalidFlow(
            f"{where} has {size - 8 - length} bytes of tensors; its header says {end}"
        )


def _parse_span(name: str, entry: Any, where: str) -> tuple[int, int]:
    """Return the byte range of a tensor, which must match its shape and type.

    Raises InvalidFlow.
    """
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(stop)],
        } if dtype in BYTES_OF:
            count = 1
            for side in shape:
                if not isinstance(side, int) or not 0 <= side < 2**48:
                    break
                count *= side
            else:
                if 0 <= begin <= stop and stop - begin == count * BYTES_OF[dtype]:
                    return begin, stop
    raise InvalidFlow(f"{where} has inconsistent sizes of tensor {name[:100]!r}")


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        _check_size(path, "config.json", 1 << 20)
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidFlow(
            f"model folder {folder.name} has no readable config.json: {error}"
        ) from error
    if not isinstance(config, dict):
        raise InvalidFlow(f"{folder.name}/config.json is not an object")
    return config


def _list_files(folder: Path) -> Iterator[Path]:
    """Yield every file in the folder.

    Links to files are followed (the hub's cache uses them), links to folders not.
    """
    for path in _list_entries(folder):
        if path.is_file():
            yield path
        elif not path.is_dir():  # reading a pipe or a device may never end
            raise InvalidFlow(
                f"{path.relative_to(folder).as_posix()} in {folder.name} is neither a file nor a "
                "folder"
            )


def _list_entries(folder: Path) -> list[Path]:
    found = list(itertools.islice(folder.rglob("*"), MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise InvalidFlow(f"model folder {folder.name} has more than {MAX_FILES} files")
    return sorted(found)


def _check_file(path: Path, where: str, *, kind: str) -> None:
    if path.suffix.lower() in FORBIDDEN_SUFFIXES:
        raise InvalidFlow(
            f"{where} is not allowed in {kind}: weights must be safetensors, and code is refused"
        )
    if path.suffix == ".json":
        _check_json(path, where)
    elif path.suffix == ".jinja":
        _check_size(path, where, MAX_TEMPLATE_BYTES)
    elif path.suffix == ".safetensors":
        check_safetensors(path, where)


def _check_json(path: Path, where: str) -> None:
    _check_size(path, where, MAX_JSON_BYTES)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidFlow(f"{where} is not JSON: {error}") from error
    pending = [value]
    while pending:
        here = pending.pop()
        if isinstance(here, dict):
            if named := [key for key in FORBIDDEN_KEYS if key in here]:
                raise InvalidFlow(f"{where} has {named[0]!r}: a model folder may not choose code")
            _check_file_names(here, where)
            template = here.get("chat_template")
            if isinstance(template, str) and len(template) > MAX_TEMPLATE_BYTES:
                raise InvalidFlow(f"{where} has a chat template of {len(template)} characters")
            # A vocabulary is a flat table of a hundred thousand numbers: no item of it needs a
            # visit.
            pending += [item for item in here.values() if isinstance(item, dict | list)]
        elif isinstance(here, list):
            pending += [item for item in here if isinstance(item, dict | list)]


def _check_file_names(table: dict[str, Any], where: str) -> None:
    """Check that files which libraries open (tokenizer, weight shards) are in this folder."""
    named = [
        (key, value)
        for key, value in table.items()
        if key.endswith("_file") and key not in _IGNORED_KEYS
    ]
    pieces = table.get("weight_map")
    if isinstance(pieces, dict):
        named += [("weight_map", value) for value in pieces.values()]
    for key, value in named:
        if isinstance(value, str) and (value in (".", "..") or "/" in value or "\\" in value):
            raise InvalidFlow(
                f"{where} names a file of another folder in {key!r}; try: the name of a file in "
                "the same folder"
            )


def _check_size(path: Path, where: str, limit: int) -> None:
    size = path.stat().st_size
    if size > limit:
        raise InvalidFlow(f"{where} has {size} bytes; the limit is {limit}")
