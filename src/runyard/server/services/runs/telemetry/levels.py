"""Levels of log lines: debug, info, warning, error.

A level is derived from the line itself whenever it is read, never stored, so every log has levels,
however old. Warnings of the trainer are events that say so. Other output shows its level in a
prefix such as ``WARNING:`` or ``[ERROR]``, in the name of a Python warning or exception, or as part
of a traceback. A line without any of these is information, also on standard error.
"""

import re
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
DEBUG, INFO, WARNING, ERROR = range(4)
PREFIX_LENGTH = 160  # the part of a line in which its level is looked for

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
# What every line with another level than information contains; ten times as fast to look for.
_HINT = re.compile(
    r'Traceback|File "|Err|Exc|Int|ERR|CRIT|FATAL|error|fatal|arning|WARN|DEBUG|TRACE'
)
_MARK = re.compile(
    r"""(?P<error>
          ^Traceback\ \(most\ recent\ call\ last\)
        | ^\ +File\ ".*",\ line\ [0-9]
        | ^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)(?::|$)
        | (?:^|[\s\[(<|:-])(?:ERROR|CRITICAL|FATAL)(?=$|[\s\])>|:-])
        | ^(?:error|fatal)(?:\ error)?:
        )
      | (?P<warning>
          \b[A-Z]\w*Warning:\s
        | (?:^|[\s\[(<|:-])WARN(?:ING)?(?=$|[\s\])>|:-])
        | ^[Ww]arning:
        )
      | (?P<debug>(?:^|[\s\[(<|:-])(?:DEBUG|TRACE)(?=$|[\s\])>|:-]))""",
    re.VERBOSE,
)
_LEVEL_OF = {"error": ERROR, "warning": WARNING, "debug": DEBUG}


def derive_level(stream: str, text: str) -> int:
    """Return the index of a line's level in ``LEVELS``."""
    if stream == "events":
        return WARNING if text.startswith("warning: ") else INFO
    start = text[:PREFIX_LENGTH]
    if _HINT.search(start) is None:
        return INFO
    if "\x1b" in start:
        start = _COLOR.sub("", start)
    found = _MARK.search(start)
    return INFO if found is None else _LEVEL_OF[str(found.lastgroup)]
