"""The command line called in the process of the tests."""

from collections.abc import Callable

from click.testing import Result

Runyard = Callable[..., Result]
