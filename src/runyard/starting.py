"""How a process of an instance reports that it cannot start, to whoever started it.

A process that cannot start writes one line, as its last, and ends with one of two exit statuses. Whoever watches it
knows by the status whether starting it again may help, and shows the line instead of a traceback.
"""

EXIT_CANNOT_START = 3  # nothing but a change by the operator helps
EXIT_NOT_NOW = 75  # may pass by itself: a database that is away, a full disk


class CannotStart(Exception):
    """The process cannot start; the message names the cause, the value and the fix, and holds no secret.

    ``may_pass`` is set for a cause that may go away without a change of what was given to this process.
    """

    def __init__(self, message: str, *, may_pass: bool = False):
        super().__init__(" ".join(message.split()))
        self.exit_status = EXIT_NOT_NOW if may_pass else EXIT_CANNOT_START
