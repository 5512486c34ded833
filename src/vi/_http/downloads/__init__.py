"""Resumable downloads that appear under their final name only when complete and verified.

A download is written to ``<name>.part``; ``<name>.part.json`` records which file it belongs to. The
file is renamed only after its length and hash are verified. After a lost connection, an ended
process or a crash, the next call resumes the partial file. Damaged data is discarded and fetched
again.
"""
