"""Operations that differ between the two clients beyond ``await``: sleep, threads and callbacks.

The asynchronous client is written by hand and the synchronous one is generated from it
(``scripts/unasync``); the generator replaces one of these modules with the other.
"""
