"""The protocol by which a process of an instance reports to its parent that it cannot start.

The process writes one line, as its last, and exits with one of two statuses. The status says
whether a restart may help; the parent shows the line instead of a traceback.
"""

import errno

EXIT_CANNOT_START = 3  # only a change by the operator helps
EXIT_NOT_NOW = 75  # may be temporary: an unreachable database, a full disk


class CannotStart(Exception):
    """The process cannot start; the message has the cause, the value and the fix, and no secret.

    ``may_pass`` marks a temporary cause, which may end without a change of the settings.
    """

    def __init__(self, message: str, *, may_pass: bool = False):
        super().__init__(" ".join(message.split()))
        self.exit_status = EXIT_NOT_NOW if may_pass else EXIT_CANNOT_START


# Errors of the system: the fix, and whether the cause may be temporary.
_FIXES = {
    errno.ENOSPC: ("free space on that disk", True),
    errno.EDQUOT: ("free space within the quota", True),
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


def explain_os_error(error: OSError) -> CannotStart:
    """Return the error to report for a file or folder that the process may not use."""
    fix, may_pass = _FIXES.get(error.errno or 0, _NO_ACCESS)
    return CannotStart(
        f"cannot use {error.filename}: {error.strerror or error}; try: {fix}", may_pass=may_pass
    )
