"""One small process per attempt: it owns the trainer's processes, renews the lease, and ships the
trainer's output.
"""
