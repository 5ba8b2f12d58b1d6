"""What the live page tells of a running lab: the trace as it grows, the CA's DNS questions, the state of the world."""

import configparser
import contextlib
import json
import logging
import os
import queue
import secrets
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from lab import look
from lab.alibaba.alidns import Record
from lab.lab import Lab
from lab.page import report

TICK = 0.2  # seconds between two looks at the trace
WORLD_EVERY = 1.0  # seconds between two looks at everything else, while somebody watches
HEARTBEAT = 5.0  # seconds after which whoever follows hears that there is nothing new
GONE_FOR = 60.0  # seconds that a deleted record is still shown
MOST_RECORDS = 10_000
MOST_CERTIFICATES = 8

log = logging.getLogger(__name__)


class Watch:
    """Collects records (docs/trace.md) in the order of their times, and the state of the world.

    epoch: names this run of the lab, for pages that outlive it
    """

    def __init__(self, lab: Lab, settings: Path) -> None:
        """`settings` is lab.ini, which names the state folder whose trace is followed."""
        self.lab = lab
        self.epoch = secrets.token_hex(8)
        self._settings = settings
        self._questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._trace: tuple[Path, int, int] = (Path(), 0, 0)  # file, inode, octets read
        self._records: list[dict[str, Any]] = []
        self._dropped = 0
        self._world: dict[str, Any] = {}
        self._version = 0
        self._watchers = 0
        self._news = threading.Condition()
        self._ended = threading.Event()
        self._edges: list[dict[str, Any]] = []

    def __enter__(self) -> "Watch":
        self._roots = self.lab.issuer_roots()
        for server in self.lab.dns_servers:
            server.on_answer = self._note_question
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        with self._news:
            self._news.notify_all()
        self._thread.join()
        for server in self.lab.dns_servers:
            server.on_answer = None

    def follow(self, start: int) -> Iterator[tuple[int, list[dict[str, Any]], dict[str, Any] | None]]:
        """Yield what is new: (the number of the next record, records from `start` on, the world if it changed).

        There may be nothing new in a turn, which comes after HEARTBEAT at the latest; the turns end with the lab.
        """
        version = 0
        with self._news:
            self._watchers += 1
        try:
            while not self._ended.is_set():
                with self._news:
                    if self._end <= start and self._version == version and not self._ended.is_set():
                        self._news.wait(HEARTBEAT)
                    first = max(start - self._dropped, 0)
                    records, start = self._records[first:], self._end
                    world, version = (self._world if self._version != version else None), self._version
                yield start, records, world
        finally:
            with self._news:
                self._watchers -= 1

    @property
    def _end(self) -> int:
        return self._dropped + len(self._records)

    def _run(self) -> None:
        world_due = 0.0
        while not self._ended.wait(TICK):
            records = self._new_in_trace()
            with contextlib.suppress(queue.Empty):
                while True:
                    records.append(self._questions.get_nowait())
            if records:
                self._tell(records=sorted(records, key=_began))
            # What happened changes the world; and it may change by itself.
            if self._watchers and (records or time.monotonic() >= world_due):
                try:
                    self._tell(world=self._look())
                except Exception:
                    # A learner may put anything into the state folder; the next look may do better.
                    log.exception("cannot look at the world")
                world_due = time.monotonic() + WORLD_EVERY

    def _tell(self, records: Sequence[dict[str, Any]] = (), world: dict[str, Any] | None = None) -> None:
        """Let those who follow know of new records, or of the world if it is another than before."""
        with self._news:
            self._records += records
            surplus = max(len(self._records) - MOST_RECORDS, 0)
            del self._records[:surplus]
            self._dropped += surplus
            if world not in (None, self._world):
                self._world = world or {}
                self._version += 1
            self._news.notify_all()

    # Records.

    def _new_in_trace(self) -> list[dict[str, Any]]:
        """The whole lines that were added to the trace; all of it when it is another file than before."""
        path = self._state() / report.TRACE
        try:
            with open(path, "rb") as file:
                now = os.fstat(file.fileno())
                known_path, known_inode, offset = self._trace
                if (path, now.st_ino) != (known_path, known_inode) or now.st_size < offset:
                    offset = 0
                file.seek(offset)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._trace = path, now.st_ino, offset + len(whole)
        return report.read_trace(whole)

    def _state(self) -> Path:
        """The state folder that lab.ini names; a learner may have changed it."""
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error, UnicodeDecodeError):
            parser.read(self._settings, encoding="utf-8")
        return self._settings.parent / parser.get("files", "directory", fallback="lab-state")

    def _note_question(self, query: dns.message.Message, answer: dns.message.Message | bytes | None) -> None:
        """Note what the CA asked. The scripts' own questions, without RD, are in the trace already."""
        if not query.question or not query.flags & dns.flags.RD:
            return
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        status, told = "no answer", []
        if isinstance(answer, dns.message.Message):
            status = dns.rcode.to_text(answer.rcode())
            told = [line for rrset in answer.answer for line in rrset.to_text().splitlines()]
        self._questions.put(
            {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "kind": "dns",
                # Of the two who ask as resolvers do, dig sends a cookie (RFC 7873), and Pebble does not.
                "by": "You" if any(option.otype == dns.edns.COOKIE for option in query.options) else "CA",
                "method": "QUERY",
                "url": f"dns:{name}?type={kind}",
                "sent": {"name": name, "type": kind},
                "status": status,
                "received": {"answer": told},
            }
        )

    # The world.

    def _look(self) -> dict[str, Any]:
        certificates = self._certificates()
        return {
            "zones": self._zones(),
            "certificates": certificates,
            "edges": self._look_at_edges({c["serial"] for c in certificates if c["status"] == "revoked"}),
            "faults": self.lab.faults.active(),
        }

    def _zones(self) -> list[dict[str, Any]]:
        """The zones that have records, with those that were deleted a moment ago; what dns-01 needs comes first."""
        dns, since = self.lab.cloud.dns, time.monotonic() - GONE_FOR
        zones = []
        for zone in dns.zone_names():
            gone = [record for record in dns.ended(zone) if (record.deleted_at or 0) > since]
            records = [
                {
                    "id": f"{record.record_id} {record.created_at}",
                    "name": record.rr,
                    "type": record.type,
                    "value": record.value,
                    "gone": record.deleted_at is not None,
                }
                for record in sorted([*dns.records(zone), *gone], key=_place)
            ]
            if records:
                zones.append({"zone": zone, "records": records})
        return zones

    def _certificates(self) -> list[dict[str, Any]]:
        """The learner's newest certificates, with what the CA itself says of them."""
        certificates = report.certificates(self._state())[:MOST_CERTIFICATES]
        for certificate in certificates:
            # Where the CA does not know it, or does not answer, the files' word stands.
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = self.lab.pebble.certificate_status(int(certificate["serial"], 16))
                certificate["status"] = status["Status"].lower()
        return certificates

    def _look_at_edges(self, revoked: set[str]) -> list[dict[str, Any]]:
        """Shake hands with both edges for every domain, as a browser that trusts the CA's root would."""
        # A fault that strikes so many times is meant for the learner's handshakes.
        if any(fault.startswith("edge-") and "*" in fault for fault in self.lab.faults.active()):
            return self._edges
        cdn = [("CDN", self.lab.cdn_edge, domain) for domain in self.lab.cloud.cdn.domain_names()]
        bound = self.lab.cloud.apigateway.domain_names()
        apigateway = [("API Gateway", self.lab.apigateway_edge, domain) for domain in bound]
        self._edges = [
            {"edge": edge, "domain": domain, **self._handshake(address, domain, revoked)}
            for edge, address, domain in cdn + apigateway
        ]
        return self._edges

    def _handshake(self, address: str, domain: str, revoked: set[str]) -> dict[str, Any]:
        name = f"any{domain}" if domain.startswith(".") else domain
        try:
            leaf = look.served_certificate(address, name, self._roots)
        except ssl.SSLCertVerificationError as error:
            return {"locked": False, "words": error.verify_message}
        except OSError as error:
            return {"locked": False, "words": f"no TLS handshake: {error.strerror or error}"}
        serial = look.serial(leaf)
        if serial in revoked:
            return {"locked": False, "words": f"serial {serial}, which is revoked"}
        return {"locked": True, "words": f"serial {serial}, verified"}


def _began(record: dict[str, Any]) -> float:
    """When an exchange began: a challenge before the CA's questions, although its answer may come after them."""
    try:
        return datetime.fromisoformat(record["time"]).timestamp() - record.get("seconds", 0)
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


def _place(record: Record) -> tuple[bool, float]:
    return not record.rr.startswith("_acme-challenge"), record.created_at


def as_event(name: str, data: Any, number: str = "") -> bytes:
    """A server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    head = f"id: {number}\n" if number else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()
