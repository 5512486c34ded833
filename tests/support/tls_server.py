"""A small server of TLS, or of plain HTTP, with any certificate."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.certificates import KeyPair


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class TlsServer(ThreadingHTTPServer):
    """Handshakes in the thread of a connection, and reports no client that gives up."""

    context: ssl.SSLContext | None = None
    connections = 0
    cuts = 0  # connections to close before the handshake

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        if self.connections <= self.cuts:
            return
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serve_tls(pair: KeyPair | None) -> Iterator[TlsServer]:
    """Serve TLS with a certificate, or plain HTTP without one."""
    with TlsServer(("127.0.0.1", 0), _Answer) as server:
        if pair is not None:
            server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.context.load_cert_chain(pair.certificate, pair.key)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
