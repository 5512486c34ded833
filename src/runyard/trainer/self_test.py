"""``python -m runyard.trainer.self_test FOLDER``: tests memory, disk and devices of a machine.

A machine on which several runs have failed is tested before it takes another. The test is short: a
pattern written to memory and to the disk is read back, and each device multiplies matrices whose
product is known. It prints ``{"passed": ..., "message": ...}``.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

MIB = 1 << 20
MEMORY_BYTES, DISK_BYTES = 256 * MIB, 32 * MIB
SIDE, REPEATS = 1024, 8  # of matrices of whole numbers, whose products float32 holds exactly


class BrokenMachine(Exception):
    """A part of the machine does not work; the message names it."""


def check_memory(size_bytes: int = MEMORY_BYTES) -> str:
    """Write patterns to memory and read them back.

    Raises:
        BrokenMachine: a byte has changed.
    """
    for pattern in (0x55, 0xAA):
        expected = bytes([pattern]) * MIB
        blocks = [bytearray(expected) for _ in range(size_bytes // MIB)]
        if any(block != expected for block in blocks):
            raise BrokenMachine(f"memory has lost the pattern {pattern:#x}")
    return f"{size_bytes // MIB} MiB of memory"


def check_disk(folder: Path, size_bytes: int = DISK_BYTES) -> str:
    """Write a file, flush it to the disk, and read it back.

    Raises:
        BrokenMachine: the content has changed, or the disk reports an error.
    """
    content = os.urandom(MIB)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            for _ in range(size_bytes // MIB):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from the cache
            file.seek(0)
            read = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise BrokenMachine(f"disk: {error.strerror}") from error
    if read != hashlib.sha256(content * (size_bytes // MIB)).digest():
        raise BrokenMachine("disk: what was read is not what was written")
    return f"{size_bytes // MIB} MiB on the disk"


def check_devices() -> str:
    """Multiply matrices on the processor and every accelerator.

    Raises:
        BrokenMachine: a product is wrong, or a device reports an error.
    """
    import torch

    devices = [torch.device("cpu")]
    if (kind := torch.accelerator.current_accelerator()) is not None:
        devices += [torch.device(kind.type, i) for i in range(torch.accelerator.device_count())]
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randint(-8, 9, (SIDE, SIDE), generator=generator).float() for _ in range(2)
    )
    # Whole numbers: int64 and float32 give the same product, whatever the order of the sums.
    expected = (left[:8].long() @ right.long()).float()
    for device in devices:
        try:
            products = [(left.to(device) @ right.to(device)).cpu() for _ in range(REPEATS)]
        except RuntimeError as error:
            raise BrokenMachine(f"{device}: {error}") from error
        if any(not torch.equal(product, products[0]) for product in products):
            raise BrokenMachine(f"{device}: the same product differs from one time to the next")
        if not torch.equal(products[0][:8], expected):
            raise BrokenMachine(f"{device}: a product of matrices is wrong")
    return f"{len(devices)} device{'s' if len(devices) > 1 else ''}"


def run(folder: Path) -> tuple[bool, str]:
    """Run every part; return whether all have passed, with what was tested or what has failed."""
    checks: list[Callable[[], str]] = [check_memory, partial(check_disk, folder), check_devices]
    try:
        return True, ", ".join([check() for check in checks])
    except BrokenMachine as error:
        return False, str(error)


def main() -> int:
    passed, message = run(Path(sys.argv[1]))
    print(json.dumps({"passed": passed, "message": message}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
