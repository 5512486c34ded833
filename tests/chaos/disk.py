"""A disk of the tests' own: ext4 in a file, on which power can be cut and space can run out.

The shutdown ioctl makes ext4 stop at once, without flushing anything: what was not fsynced is really lost, exactly as
when the plug is pulled. It would do the same to the machine's own disk, so the device is compared with that of ``/``
first. Needs root and a loop device; ``why_not`` says what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

SHUTDOWN = 0x8004587D
WITHOUT_FLUSHING = 2


def why_not() -> str | None:
    """Why there can be no such disk here; None when there can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("mkfs.ext4", "losetup", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return None if Path("/dev/loop-control").exists() else "needs loop devices"


class Disk:
    """``folder`` is where it is mounted. ``close`` leaves neither mount nor loop device."""

    def __init__(self, at: Path, *, size_mib: int = 4096):
        self._image, self.folder = at / "disk.img", at / "disk"
        self._is_filled = False
        self.folder.mkdir(parents=True)
        with open(self._image, "wb") as image:
            image.truncate(size_mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut_power(self) -> None:
        """Whoever uses the disk gets EIO from now on; call ``come_back`` once they are gone."""
        assert self.folder.stat().st_dev != Path("/").stat().st_dev, "this is the machine's own disk"
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        self._unmount()
        self._mount()
        if not self._is_filled:
            self.free()  # what was removed just before a power cut is there again

    def fill(self) -> None:
        """Leave no space, by a file beside everything else."""
        self._is_filled = True
        filler = os.open(self.folder / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for piece_bytes in (64 << 20, 1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(filler, os.fstat(filler).st_size, piece_bytes)
        finally:
            os.close(filler)

    def free(self) -> None:
        self._is_filled = False
        with contextlib.suppress(OSError):  # a disk without power; it is done when that comes back
            (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.folder.is_mount():
            self._unmount()
        self._image.unlink(missing_ok=True)

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.folder))

    def _unmount(self) -> None:
        for _ in range(100):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("umount", str(self.folder))
                return
            time.sleep(0.05)
        _run("umount", "--lazy", str(self.folder))
        raise RuntimeError(f"something still used {self.folder}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
