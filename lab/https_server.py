"""An HTTPS listener with a thread for each connection, for the emulated cloud and the door before the CA."""

import logging
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

SOCKET_SECONDS = 30.0

log = logging.getLogger(__name__)


class HttpsServer(ThreadingHTTPServer):
    """The TLS handshake happens in the connection's thread, so that no client holds up another."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    allow_reuse_port = False

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        certificate_file: str | Path,
        key_file: str | Path,
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(certificate_file, key_file)
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        super().__init__(address, handler)

    def start(self) -> None:
        """Answer requests in the background."""
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name=f"https {self.server_port}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and end every connection; may be called twice."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        # End what is still open, so that nothing is answered after the listener has stopped.
        with self._connections_lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def server_bind(self) -> None:
        # HTTPServer's own would ask DNS for the name of the address.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(SOCKET_SECONDS)
        with self._context.wrap_socket(request, server_side=True) as connection:
            with self._connections_lock:
                self._connections.add(connection)
            try:
                super().finish_request(connection, client_address)
            finally:
                with self._connections_lock:
                    self._connections.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, timed out or speaks no TLS is no event; anything else is a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.error("a connection failed", exc_info=sys.exc_info())
