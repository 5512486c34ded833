"""What several test modules use: an in-process server, and attempts as their supervisors see them."""
