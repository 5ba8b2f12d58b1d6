"""An HTTPS listener with a thread for each connection, for the emulated cloud and the door before the CA."""

import collections
import logging
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

log = logging.getLogger(__name__)


class HttpsServer(ThreadingHTTPServer):
    """The TLS handshake happens in the connection's thread, so that no client holds up another.

    round_trip: seconds; how far away its clients are. Each handshake and each request takes them as long as it
    would on such a line; a large body takes no longer than a small one.
    traffic: (began, ended) of each handshake and each answer, time.monotonic() moments
    """

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
        round_trip: float = 0.0,
    ) -> None:
        self.round_trip = round_trip
        self.traffic: collections.deque[tuple[float, float]] = collections.deque(maxlen=20_000)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(certificate_file, key_file)
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # The handler sets it too, but only after the handshake.
        self._timeout = handler.timeout
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
        request.settimeout(self._timeout)
        began = time.monotonic()
        # TCP's handshake, and TLS's, which is one round trip since TLS 1.3 (RFC 8446 section 2).
        time.sleep(2 * self.round_trip)
        with self._context.wrap_socket(request, server_side=True) as connection:
            if connection.version() == "TLSv1.2":
                time.sleep(self.round_trip)
            self.traffic.append((began, time.monotonic()))
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


class HttpsHandler(BaseHTTPRequestHandler):
    """One connection: HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave together: in two writes the second would wait 40 ms for the first one's ACK.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: HttpsServer

    def handle_one_request(self) -> None:
        self._began = 0.0
        super().handle_one_request()
        if self._began:
            self.server.traffic.append((self._began, time.monotonic()))

    def parse_request(self) -> bool:
        """Read the headers; called when the request line has come."""
        self._began = time.monotonic()
        time.sleep(self.server.round_trip)
        return super().parse_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request line may hold secrets, and what is asked is recorded elsewhere."""
