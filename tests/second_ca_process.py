"""The process behind SecondCA: acme2certifier over HTTPS on loopback, with the lab's name server to look at.

Run   python second_ca_process.py FOLDER

SecondCA prepares the folder: process.json says the rest. The port is printed when the CA answers; it ends with
its standard input, and so with whoever started it.
"""

import base64
import io
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

import dns.resolver

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection; HTTP/1.0, so each connection is for one request."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Nothing: a client that was killed, or that trusts other roots, is no fault of the CA's."""


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet: the journal has it all."""


def pass_over_clients_that_left() -> None:
    """Let only what is no lost connection be logged with its traceback."""
    log_exception = ServerHandler.log_exception

    def log(handler: ServerHandler, exc_info: Any) -> None:
        if not isinstance(exc_info[1], OSError):
            log_exception(handler, exc_info)

    ServerHandler.log_exception = log  # type: ignore[method-assign]


class Journal:
    """Around the application: one line of JSON for each exchange, with what was signed decoded."""

    def __init__(self, application: Application, file: Path) -> None:
        self._application = application
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the process
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        started: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            started[:] = [int(status.split()[0]), dict(headers)]
            start_response(status, headers)

        answer = b"".join(self._application(environ, start))
        jws = json.loads(body) if body else {}
        entry = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "content_type": environ.get("CONTENT_TYPE", ""),
            "user_agent": environ.get("HTTP_USER_AGENT", ""),
            "protected": decoded(jws.get("protected")),
            "payload": decoded(jws.get("payload")),
            "status": started[0],
            "headers": started[1],
        }
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        return [answer]


def decoded(part: str | None) -> Any:
    """The JSON in a part of a JWS; None where there is none, as in a POST-as-GET."""
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) if part else None


def look_at(host: str, port: int) -> None:
    """Let validations ask this name server, and no other."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = [host], port, 3.0
    dns.resolver.default_resolver = resolver


def issue_with(lifetime: float, delay: float) -> None:
    """Let the CA issue for so many seconds, and take so long for it. Its own settings know whole days only."""
    from acme2certifier.cahandlers.openssl_ca_handler import CAhandler

    enroll = CAhandler.enroll

    def enroll_slowly(handler: Any, csr: str) -> Any:
        time.sleep(delay)
        return enroll(handler, csr)

    CAhandler.enroll = enroll_slowly
    CAhandler._certexpiry_date_default = lambda _: datetime.now(timezone.utc) + timedelta(seconds=lifetime)


def main(folder: Path) -> None:
    options = json.loads((folder / "process.json").read_text())
    os.environ["ACME_SRV_CONFIGFILE"] = str(folder / "acme_srv.cfg")
    # It reads its settings, and makes its database, when it is imported.
    from acme2certifier.share.acme2certifier_wsgi import application

    look_at(*options["dns_server"])
    issue_with(options["lifetime"], options["issue_delay"])
    pass_over_clients_that_left()
    server = Server(("127.0.0.1", 0), QuietHandler)
    server.base_environ["HTTPS"] = "on"
    server.set_app(Journal(application, folder / "journal.jsonl"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options["certificate"], options["key"])
    # The handshake is the connection's thread's business: no client can hold up the others.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
