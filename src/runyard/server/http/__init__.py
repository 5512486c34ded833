"""The HTTP layer: ``routes`` lists all routes, and ``gateway`` admits requests."""
