"""What protects a connection: the format of keys, TLS, and the rule against plain HTTP."""
