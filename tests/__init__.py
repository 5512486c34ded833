"""The tests, which mirror src, and the programs that some of them run."""
