"""The ``runyard`` command.

A client of the server like any other: everything it knows about runs it asks for through ``vi.Client``. Command
modules load on use, and what is slow to import (the HTTP stack, torch, pictures) loads inside the command that needs
it, so that ``--help`` and shell completion answer at once.
"""
