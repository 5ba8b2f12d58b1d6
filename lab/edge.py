"""A TLS edge, as a CDN or an API gateway has: it serves, by SNI, the certificate that its store holds now."""

import asyncio
import html
import logging
import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Protocol

from lab import pki
from lab.faults import ConnectionLost, Faults
from lab.loop import LoopThread

HANDSHAKE_TIMEOUT = 5.0
REQUEST_TIMEOUT = 5.0

log = logging.getLogger(__name__)


class CertificateStore(Protocol):
    """Where an edge looks its certificates up: Cloud.cdn or Cloud.apigateway."""

    def certificate_for(self, name: str) -> tuple[str, str] | None:
        """The chain and the private key, both PEM, of the domain that covers this name."""


class Edge:
    """A TLS listener; a certificate set in the store is served from the next handshake on."""

    def __init__(
        self,
        store: CertificateStore,
        title: str,
        directory: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
    ) -> None:
        """`directory` is a private folder for the moment in which a key has to be in a file."""
        self.host = host
        self.port = port
        self._store = store
        self._title = title
        self._label = title.replace(" ", "").lower()
        self._faults = faults or Faults()
        self._directory = directory
        self._default = self._context(pki.self_signed("lab default"))
        self._default.sni_callback = self._choose_certificate
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}

    def start(self) -> None:
        """Listen until stop()."""
        self._loop = LoopThread(f"{self._title} edge")
        try:
            self._loop.run(self._listen())
        except BaseException:
            self._loop.stop()
            raise

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._loop.stop()
        self._listener.close()

    def __enter__(self) -> "Edge":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The address as host:port."""
        return f"{self.host}:{self.port}"

    async def _listen(self) -> None:
        # Not asyncio.start_server: in its hands a client that is still in the handshake outlives stop().
        self._listener = socket.create_server((self.host, self.port), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        """Give each connection a task of its own, so that no client holds up another."""
        loop = asyncio.get_running_loop()
        tasks = set()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # A client that left while it was waiting, or no file descriptor at this moment.
                log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._serve(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def _choose_certificate(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> int | None:
        """Switch to the named domain's certificate; without one the default goes out, as at real edges."""
        try:
            held = self._faults.through("edges", (self._label,), name, lambda: self._held(name))
        except ConnectionLost:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        if held is None:
            return None
        try:
            if held not in self._contexts:
                self._contexts[held] = self._context(held)
            connection.context = self._contexts[held]
        except (ssl.SSLError, OSError) as error:
            log.warning("the certificate of %s cannot be served: %s", name, error)
        return None

    def _held(self, name: str | None) -> tuple[str, str] | None:
        return self._store.certificate_for(name.lower()) if name else None

    def _context(self, held: tuple[str, str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # A session that is resumed by its ticket would not show the certificate that was installed since.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        # The ssl module reads certificates and keys from files only.
        descriptor, path = tempfile.mkstemp(suffix=".pem", dir=self._directory)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write("\n".join(held))
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
        return context

    async def _serve(self, connection: socket.socket) -> None:
        """Shake hands, answer one request with a small page, and close the connection."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._default, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except OSError as error:
            log.debug("no handshake: %s", error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT)
            writer.write(self._response(head.decode("latin-1")))
            await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, OSError):
            pass
        except asyncio.CancelledError:
            # The edge stops: no time is left for a polite end of TLS.
            transport.abort()
            raise
        finally:
            writer.close()

    def _response(self, head: str) -> bytes:
        request_line, *header_lines = head.split("\r\n")
        hosts = [line[5:].strip() for line in header_lines if line.lower().startswith("host:")]
        host = html.escape(hosts[0] if hosts else "")
        page = (
            f"<!doctype html><title>{host}</title><h1>{host}</h1>"
            f"<p>Served over TLS by the lab's {html.escape(self._title)} edge.</p>\n"
        ).encode()
        response_head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
            f"Content-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        ).encode()
        return response_head if request_line.startswith("HEAD ") else response_head + page
