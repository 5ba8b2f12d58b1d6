"""An HTTPS server on loopback that answers as a test tells it to: for what no real CA would do on request."""

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lab import pki

Reply = tuple[int, dict[str, str], bytes]


class CannedServer:
    """Serves an ACME directory and nonces at /dir and /nonce; all else is answered by `answer(path, body)`.

    requests holds (method, path, headers, parsed body) of what came in: JSON, or the fields of a form.
    """

    def __init__(
        self,
        folder: Path,
        answer: Callable[[str, dict[str, Any]], Reply] | None = None,
        files: pki.ServerFiles | None = None,
    ) -> None:
        self.files = files or pki.write_server_files(folder)
        self.ca_bundle = str(self.files.root)
        self.answer = answer or (lambda path, body: (200, {}, b"{}"))
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.nonces = 0
        canned = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else a body would wait until the client has acknowledged the headers, 40 ms later.
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.reply("GET", None)

            def do_HEAD(self) -> None:
                self.reply("HEAD", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_json = "json" in self.headers.get("Content-Type", "")
                self.reply("POST", json.loads(body) if is_json else dict(parse_qsl(body.decode())))

            def reply(self, method: str, body: Any) -> None:
                canned.requests.append((method, self.path, dict(self.headers), body))
                if method == "POST" or self.path not in ("/dir", "/nonce"):
                    status, headers, content = canned.answer(self.path, body)
                else:
                    status, headers, content = 200, {}, json.dumps(canned.directory()).encode()
                self.send_response(status)
                canned.nonces += 1
                headers = {
                    "Replay-Nonce": f"nonce-{canned.nonces}",
                    "Content-Type": "application/json",
                    **headers,
                }
                headers.setdefault("Content-Length", str(len(content)))
                for name, value in headers.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                if method != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files.certificate, self.files.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.base = f"https://127.0.0.1:{self.server.server_port}"

    def directory(self) -> dict[str, Any]:
        return {"newNonce": f"{self.base}/nonce", "newOrder": f"{self.base}/order", "Xk3dw": "ignore this"}

    def __enter__(self) -> "CannedServer":
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def problem(kind: str, status: int, detail: str = "no", **members: Any) -> Reply:
    """A problem document (RFC 8555 section 6.7)."""
    body = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail, "status": status, **members}
    return status, {"Content-Type": "application/problem+json"}, json.dumps(body).encode()
