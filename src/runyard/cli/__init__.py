"""The ``runyard`` command.

It is a client of the server like any other and accesses runs only through ``vi.Client``. Command
modules are loaded on use. Slow imports (HTTP stack, torch, Pillow) happen inside the commands that
need them, so that ``--help`` and shell completion respond at once.
"""
