"""The server's HTTP face. ``routes`` lists every route, ``door`` lets in, ``compat`` holds other clients' quirks."""
