"""The door in front of the CA: passes every request on as it is, counts it, and is where the CA's faults happen.

The Host header goes on too. Pebble makes its URLs of it, so all of them lead through this door and no body has to be
rewritten.
"""

import collections
import http.client
import logging
import queue
import socket
import ssl
import struct
import time
from typing import NamedTuple

from lab import pki
from lab.faults import ConnectionLost, Faults
from lab.faults.ca import Reply, Request
from lab.https_server import HttpsHandler, HttpsServer

UPSTREAM_SECONDS = 30.0
# Those that are about one connection and not about what is said (RFC 9110 section 7.6.1); the length is set anew.
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")

log = logging.getLogger(__name__)


class Exchange(NamedTuple):
    """One request that came through, and when; status is 0 where the connection ended without an answer."""

    time: float
    method: str
    resource: str
    path: str
    status: int


class CaProxy:
    """An HTTPS listener; `exchanges` are the last requests."""

    def __init__(
        self,
        tls: pki.ServerFiles,
        faults: Faults,
        host: str = "127.0.0.1",
        port: int = 0,
        round_trip: float = 0.0,
    ) -> None:
        self.exchanges: collections.deque[Exchange] = collections.deque(maxlen=20_000)
        self._faults = faults
        self._idle: queue.LifoQueue[http.client.HTTPSConnection] = queue.LifoQueue()
        self._context = ssl.create_default_context(cafile=str(tls.root))
        self._server = _Server((host, port), tls, self, round_trip)
        self.traffic = self._server.traffic
        self.address = f"{host}:{self._server.server_port}"
        self.upstream = ""

    def __enter__(self) -> "CaProxy":
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop()
        while not self._idle.empty():
            self._idle.get().close()

    def answer(self, request: Request) -> Reply:
        """What the CA answers, or a fault in its place; ConnectionLost when that is no answer at all."""
        labels = (request.resource,)
        began, status = time.time(), 0
        try:
            reply: Reply = self._faults.through("CA", labels, request, lambda: self._ask(request))
            status = reply.status
        finally:
            self.exchanges.append(Exchange(began, request.method, request.resource, request.path, status))
        return reply

    def _ask(self, request: Request) -> Reply:
        """Pass a request on. Connections to the CA are kept and used by whoever comes next."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            host, _, port = self.upstream.partition(":")
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=UPSTREAM_SECONDS, context=self._context
            )
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            log.warning("the CA does not answer: %r", error)
            return Reply(502, [("Content-Type", "text/plain")], b"the CA behind this proxy does not answer\n")
        self._idle.put(connection)
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
        return Reply(response.status, headers, body)


class _Server(HttpsServer):
    def __init__(
        self, address: tuple[str, int], tls: pki.ServerFiles, proxy: CaProxy, round_trip: float
    ) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler, tls.certificate, tls.key, round_trip)


class _Handler(HttpsHandler):
    timeout = 60.0
    server: _Server

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > 1024 * 1024:
            self.send_error(413)
            return
        request = Request(self.command, self.path, self.headers.items(), self.rfile.read(int(length)))
        try:
            self._send(self.server.proxy.answer(request))
        except ConnectionLost:
            self._reset()

    def _send(self, reply: Reply) -> None:
        # Not send_response(): it would add a Server header of its own.
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        # HEAD's answer says how long the body would be, which the CA does not say.
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.drip:
            for octet in reply.body:
                self.wfile.flush()
                time.sleep(reply.drip)
                self.wfile.write(bytes([octet]))
        self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
        if reply.cut is not None:
            self._reset()

    def _reset(self) -> None:
        """End the connection as a cut line does: with a TCP reset, not with the polite end of TLS."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
