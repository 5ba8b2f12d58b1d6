"""Serves the live page on loopback, to this machine's own browser and to nobody else's pages."""

import errno
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lab import LabError
from lab.faults import parts
from lab.page import report
from lab.page.watch import Watch, as_event

HOST = "127.0.0.1"
LARGEST_REQUEST = 1000  # octets
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self';"
    " style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer:
    """An HTTP listener: the page, its events, and the switches of the faults."""

    def __init__(self, watch: Watch, port: int = 0) -> None:
        self._watch = watch
        self._port = port

    def __enter__(self) -> "PageServer":
        try:
            self._server = _Server((HOST, self._port), self._watch)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LabError(
                    f"port {self._port} (live picture) is in use: end that program, or choose --page-port 0"
                ) from error
            raise
        self.url = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="page", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.watch = watch
        # Whoever can read the page can switch faults; whoever can only send requests cannot.
        self.token = secrets.token_urlsafe(24)
        super().__init__(address, _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def server_bind(self) -> None:
        # HTTPServer's own would ask DNS for the name of the address; nothing may share the port.
        self.allow_reuse_port = False
        super(ThreadingHTTPServer, self).server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lab", ""
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/events":
            self._send_events()
        elif self.path in FILES:
            name, kind = FILES[self.path]
            text = (report.PAGE / name).read_text(encoding="utf-8")
            token = f'<meta name="token" content="{self.server.token}">'
            self._send(200, f"{kind}; charset=utf-8", text.replace('<meta name="token" content="">', token))
        else:
            self._send(404, "text/plain; charset=utf-8", "there is no such page\n")

    def do_POST(self) -> None:
        """Switch a fault on or off: {"on": SPECIFICATION} or {"off": NAME} (lab/faults)."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            self.close_connection = True
            self._send(413, "text/plain; charset=utf-8", "too long\n")
            return
        body = self.rfile.read(int(length))
        if not self._is_ours(changes=True):
            return
        faults = self.server.watch.lab.faults
        try:
            wanted = json.loads(body)
            if self.path != "/faults" or not isinstance(wanted, dict) or len(wanted) != 1:
                raise ValueError
            (what, value), *_ = wanted.items()
            if what not in ("on", "off"):
                raise ValueError
            (faults.on if what == "on" else faults.off)(str(value))
            self._send_json(200, {"active": faults.active()})
        except LabError as error:
            self._send_json(400, {"error": str(error)})
        except (ValueError, RecursionError):
            self._send_json(400, {"error": "this is no request that the page makes"})

    def _is_ours(self, changes: bool = False) -> bool:
        """Whether a person at this machine, or our own page, asks; everybody else is refused.

        A page of another site may make a browser send requests here. The browser says so in Origin and
        Sec-Fetch-Site; and one that was led here by DNS (rebinding) says its own name in Host.
        """
        hosts = self.headers.get_all("Host", [])
        host = hosts[0] if len(hosts) == 1 else ""
        origin = self.headers.get("Origin")
        token = self.headers.get("X-Token", "").encode()
        if (
            host in self.server.hosts
            and self.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
            and origin in ((f"http://{host}",) if changes else (None, f"http://{host}"))
            and (not changes or self.headers.get("Content-Type") == "application/json")
            and (not changes or secrets.compare_digest(token, self.server.token.encode()))
        ):
            return True
        self.close_connection = True
        self._send(
            403, "text/plain; charset=utf-8", "only this page itself, typed into a browser here, may ask\n"
        )
        return False

    def _send_events(self) -> None:
        """Server-sent events: who we are, then records and the world as they come. Ends with the lab, or the reader."""
        self.close_connection = True
        watch = self.server.watch
        self._begin(200, "text/event-stream; charset=utf-8")
        hello = {
            "epoch": watch.epoch,
            "scripts": report.script_titles(),
            "explanations": report.explanations(),
            "parts": [
                {
                    "name": part.name,
                    "where": part.where,
                    "faults": [
                        {"name": fault.name, "description": fault.description} for fault in part.faults
                    ],
                }
                for part in parts()
            ],
        }
        self.wfile.write(b"retry: 1000\n" + as_event("hello", hello))
        # A page that lost us for a moment says how far it has come.
        epoch, _, number = self.headers.get("Last-Event-ID", "").partition("-")
        start = int(number) if epoch == watch.epoch and number.isdecimal() else 0
        for end, records, world in watch.follow(start):
            if records:
                self.wfile.write(as_event("records", records, f"{watch.epoch}-{end}"))
            if world is not None:
                self.wfile.write(as_event("world", world))
            # Something must be written now and then, to learn that nobody reads any more.
            self.wfile.write(b":\n\n")

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value))

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self._begin(status, kind, len(body))
        self.wfile.write(body)

    def _begin(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the lab's terminal is for the lab."""
