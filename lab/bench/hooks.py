"""The bench's side of other clients' hooks: TXT records on request, in the lab's DNS; and files for http-01.

It is a hook as quick as one can be. It knows the zone and has a connection to Alibaba Cloud open, so that a change
takes one round trip; and it knows what no real hook can: to the moment, when the last name server has a record.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from lab.alibaba.alidns import AliDns

LEGO_INTERVAL = 2  # seconds, its default


class HookServer(ThreadingHTTPServer):
    """An HTTP listener on loopback.

    files: a folder, from which http-01 tokens are served; expected: how many records the client at work will add
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, zone: str, round_trip: float, lag: float) -> None:
        """`round_trip` to Alibaba Cloud and `lag` of the last name server, in seconds."""
        self.zone = zone
        self.dns = AliDns()
        self.files = Path()
        self.expected = 0
        # As of Lab's listeners: (began, ended) of what stands for calls of Alibaba Cloud; and when records were made.
        self.traffic: list[tuple[float, float]] = []
        self.added: list[float] = []
        self._round_trip = round_trip
        self.lag = lag
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "HookServer":
        Thread(target=self.serve_forever, args=(0.02,), name="hooks", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def change(self, action: str, names: list[tuple[str, str]]) -> None:
        """Add or remove the TXT records (domain, value): all at once, as if by calls side by side."""
        began = time.monotonic()
        time.sleep(self._round_trip)
        for domain, value in names:
            rr = f"_acme-challenge.{domain}".removesuffix(f".{self.zone}")
            if action == "remove":
                self._remove(rr, value)
            else:
                self.dns.add_record(self.zone, rr, "TXT", value)
                self.added.append(time.monotonic())
        self.traffic.append((began, time.monotonic()))
        if action == "add":
            time.sleep(self.lag)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was ended for taking too long does not hear the answer; anything else is a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def _remove(self, rr: str, value: str) -> None:
        for record in self.dns.records(self.zone):
            if (record.rr, record.type, record.value) == (rr, "TXT", value):
                self.dns.remove_record(record.record_id)


class _Handler(BaseHTTPRequestHandler):
    server: HookServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path.startswith("/lego/"):
            # lego's provider httpreq: one record, as JSON.
            record = json.loads(body)
            domain = record["fqdn"].rstrip(".").removeprefix("_acme-challenge.")
            action = "remove" if self.path.endswith("cleanup") else "add-only"
            self.server.change(action, [(domain, record["value"])])
            if action == "add-only" and len(self.server.added) == self.server.expected:
                # In its own check's place, which would begin after its interval and go on until DNS has it.
                time.sleep(max(0.0, self.server.lag - LEGO_INTERVAL))
        else:
            lines = (line.split() for line in body.splitlines())
            self.server.change(
                self.path.strip("/"), [(domain.removeprefix("*."), value) for domain, value in lines]
            )
        self._answer(b"")

    def do_GET(self) -> None:
        # Where the CA looks for http-01.
        self._answer((self.server.files / Path(self.path).name).read_bytes())

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
