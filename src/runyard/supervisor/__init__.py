"""One small process per attempt: it owns the trainer's processes, keeps the lease, and ships what the trainer says."""
