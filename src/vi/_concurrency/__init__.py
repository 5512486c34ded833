"""What differs between the two clients besides ``await``: sleeping, threads, and calling a user's function.

The asynchronous client is written and the synchronous one generated from it (``scripts/unasync``); the generator swaps
one of these modules for the other.
"""
