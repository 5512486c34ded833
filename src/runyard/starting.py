"""How a process of an instance reports that it cannot start, to whoever started it.

A process that cannot start writes one line, as its last, and ends with one of two exit statuses. Whoever watches it
knows by the status whether starting it again may help, and shows the line instead of a traceback.
"""

import errno

EXIT_CANNOT_START = 3  # nothing but a change by the operator helps
EXIT_NOT_NOW = 75  # may pass by itself: a database that is away, a full disk


class CannotStart(Exception):
    """The process cannot start; the message names the cause, the value and the fix, and holds no secret.

    ``may_pass`` is set for a cause that may go away without a change of what was given to this process.
    """

    def __init__(self, message: str, *, may_pass: bool = False):
        super().__init__(" ".join(message.split()))
        self.exit_status = EXIT_NOT_NOW if may_pass else EXIT_CANNOT_START


# What the system refuses, the fix, and whether the cause may pass by itself.
_FIXES = {
    errno.ENOSPC: ("make room on that disk", True),
    errno.EDQUOT: ("make room within the quota", True),
    errno.EIO: ("check that disk", True),
    errno.EMFILE: ("raise the limit of open files (ulimit -n)", True),
    errno.ENFILE: ("wait until fewer files are open on this machine", True),
    errno.ENOMEM: ("free memory", True),
    errno.EROFS: ("mount it writable, or choose another --data-dir", False),
    errno.EISDIR: ("move that folder away; a file belongs there", False),
    errno.ENOTDIR: ("move that file away; a folder belongs there", False),
    errno.EEXIST: ("move that file away; a folder belongs there", False),
}
_NO_ACCESS = ("let this user read and write it, or choose another --data-dir", False)


def from_os_error(error: OSError) -> CannotStart:
    """Return what to report for a file or folder that the system does not let us use."""
    fix, may_pass = _FIXES.get(error.errno or 0, _NO_ACCESS)
    return CannotStart(f"cannot use {error.filename}: {error.strerror or error}; try: {fix}", may_pass=may_pass)
