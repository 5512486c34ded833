"""A disk for tests: ext4 in a file, on which power can fail and space can run out.

The shutdown ioctl stops ext4 at once without flushing, so data that was not fsynced is lost, as in
a power failure. It would do the same to the machine's own disk, so the device is compared with that
of ``/`` first. Needs root and a loop device; ``find_missing_requirement`` returns what is missing.
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


def find_missing_requirement() -> str | None:
    """Return what this machine lacks for such a disk; None if it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [
        name for name in ("mkfs.ext4", "losetup", "mount", "umount") if shutil.which(name) is None
    ]
    if missing:
        return f"needs {', '.join(missing)}"
    return None if Path("/dev/loop-control").exists() else "needs loop devices"


class Disk:
    """A mounted test disk.

    ``folder`` is its mount point; ``close`` removes mount and loop device.
    """

    def __init__(self, at: Path, *, size_mib: int = 4096):
        self._image, self.folder = at / "disk.img", at / "disk"
        self._is_filled = False
        self.folder.mkdir(parents=True)
        with open(self._image, "wb") as image:
            image.truncate(size_mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut_power(self) -> None:
        """Cut the power: users of the disk get EIO. Call ``come_back`` once they have ended."""
        assert self.folder.stat().st_dev != Path("/").stat().st_dev, (
            "this is the machine's own disk"
        )
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        self._unmount()
        self._mount()
        if not self._is_filled:
            self.free()  # a file removed just before the power cut may exist again

    def fill(self) -> None:
        """Fill the disk with one large file."""
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
        with contextlib.suppress(OSError):  # a disk without power; ``come_back`` frees it
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
