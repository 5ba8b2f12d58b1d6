"""An authoritative name server (RFC 1034 §4.3.2) that answers from the emulated DNS service, with a lag.

UDP and TCP on one port number. One server knows every zone of every account, as Alibaba's own servers do.
"""

import asyncio
import collections
import functools
import logging
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from lab.faults import Faults
from lab.faults.name_servers import Question
from lab.loop import LoopThread

LAB_ZONE = "lab.test"
SERVER_NAMES = ("ns1.lab.test", "ns2.lab.test")
SERVER_ADDRESS = "127.0.0.1"
APEX_TTL = 600
# A client may advertise any size; larger answers than this one go by TCP, as they do on the internet.
LARGEST_UDP_ANSWER = 4096
LONGEST_CNAME_CHAIN = 16
TCP_TIMEOUT = 5.0

IN = dns.rdataclass.IN
SOA, NS, CNAME, TXT, A = (dns.rdatatype.from_text(name) for name in ("SOA", "NS", "CNAME", "TXT", "A"))
ANY = dns.rdatatype.ANY
ZONE_TRANSFERS = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)

log = logging.getLogger(__name__)


class Record(Protocol):
    """What the server reads of a record; `line` is Alibaba's word for the asker's network or region."""

    rr: str
    type: str
    value: str
    ttl: int
    line: str
    priority: int | None


class Store(Protocol):
    """Where the zones and their records come from: Cloud.dns."""

    def zone_names(self) -> Iterable[str]: ...

    def records(self, zone: str, at: float | None = None) -> Iterable[Any]: ...


class Query(NamedTuple):
    """One question that the server was asked."""

    time: float
    transport: str
    name: str
    type: str


class NameServer:
    """One name server address; `lag` is how many seconds ago the moment is that it answers from."""

    def __init__(
        self,
        store: Store,
        lag: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
        label: str = "1",
    ) -> None:
        """`label` is what the faults know this server by: "1" or "2"."""
        self.lag = lag
        self.host = host
        self.port = port
        self.queries: collections.deque[Query] = collections.deque(maxlen=10_000)
        self.on_query: Callable[[Query], None] | None = None
        # Called with a question and its answer: a message, octets that a fault made, or None for silence.
        self.on_answer: Callable[[dns.message.Message, dns.message.Message | bytes | None], None] | None = (
            None
        )
        self._store = store
        self._faults = faults or Faults()
        self._label = label

    def start(self) -> None:
        """Bind UDP and TCP to the same port number and answer until stop()."""
        self._loop = LoopThread("name server")
        try:
            self._loop.run(self._bind())
        except BaseException:
            self._loop.stop()
            raise

    def stop(self) -> None:
        """Close both sockets and every connection."""
        self._loop.run(self._close())
        self._loop.stop()

    def __enter__(self) -> "NameServer":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The address as host:port."""
        return f"{self.host}:{self.port}"

    def reply(self, message: bytes, transport: str) -> bytes | None:
        """Answer one message in wire format, or return None where silence is the right answer."""
        # A message with the QR bit is an answer itself; to answer it could go on for ever.
        if len(message) < 2 or (len(message) > 2 and message[2] & 0x80):
            return None
        try:
            query = dns.message.from_wire(message)
        # dnspython raises more than its own types for hostile bytes.
        except Exception as error:  # noqa: BLE001
            log.debug("cannot read a query: %r", error)
            return _format_error(message)
        try:
            self._note(query, transport)
            response = self._response(query, transport)
        except Exception:
            log.exception("cannot answer %s", query.question)
            response = dns.message.make_response(query)
            response.set_rcode(dns.rcode.SERVFAIL)
        if self.on_answer is not None:
            self.on_answer(query, response)
        if response is None or isinstance(response, bytes):
            return response
        if transport == "tcp":
            return response.to_wire(max_size=65535, prefer_truncation=True)
        advertised = query.payload if query.edns >= 0 else 512
        limit = min(max(advertised, 512), LARGEST_UDP_ANSWER)
        return response.to_wire(max_size=limit, prefer_truncation=True)

    def _response(self, query: dns.message.Message, transport: str) -> dns.message.Message | bytes | None:
        """The answer, or what a fault makes of it: a message, octets, or None for silence."""

        def at(seconds_ago: float) -> dns.message.Message:
            return respond(query, Snapshot(self._store, time.monotonic() - seconds_ago))

        if not query.question:
            return at(self.lag)
        labels = (self._label, dns.rdatatype.to_text(query.question[0].rdtype))
        return self._faults.through("DNS", labels, Question(query, transport, at), lambda: at(self.lag))

    def _note(self, query: dns.message.Message, transport: str) -> None:
        for question in query.question:
            noted = Query(
                time.time(),
                transport,
                question.name.to_text(omit_final_dot=True),
                dns.rdatatype.to_text(question.rdtype),
            )
            self.queries.append(noted)
            if self.on_query is not None:
                self.on_query(noted)

    async def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        # A port number that is free for UDP may be taken for TCP, so an automatic one is tried again.
        for attempt in range(20):
            self._udp, _ = await loop.create_datagram_endpoint(
                lambda: _DatagramProtocol(self), local_addr=(self.host, self.port)
            )
            port = self._udp.get_extra_info("sockname")[1]
            try:
                self._tcp = await asyncio.start_server(self._serve_connection, self.host, port)
            except OSError:
                self._udp.abort()
                if self.port or attempt == 19:
                    raise
            else:
                self.port = port
                return

    async def _close(self) -> None:
        self._udp.abort()
        self._tcp.close()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every query of one TCP connection, each behind its length in two octets (RFC 7766)."""
        try:
            while True:
                length = await asyncio.wait_for(reader.readexactly(2), TCP_TIMEOUT)
                message = await asyncio.wait_for(
                    reader.readexactly(int.from_bytes(length, "big")), TCP_TIMEOUT
                )
                answer = self.reply(message, "tcp")
                if answer is None:
                    break
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await asyncio.wait_for(writer.drain(), TCP_TIMEOUT)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()


class _DatagramProtocol(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.reply(data, "udp")
        if answer is not None:
            self._transport.sendto(answer, addr)  # type: ignore[attr-defined]


class Zone:
    """One zone as it was at one moment: owner name -> type -> records."""

    def __init__(self, origin: dns.name.Name, records: Iterable[Record], serial: int) -> None:
        self.origin = origin
        self.nodes: dict[dns.name.Name, dict[int, dns.rdataset.Rdataset]] = {}
        self.add(origin, APEX_TTL, _soa(serial))
        for server in SERVER_NAMES:
            self.add(origin, APEX_TTL, _rdata(NS, f"{server}."))
        for record in records:
            # Records of another line than the default are for askers in networks that a lab does not have.
            rdata = _record_rdata(record) if record.line == "default" else None
            if rdata is not None:
                self.add(_owner(record.rr, origin), record.ttl, rdata)

    def add(self, owner: dns.name.Name, ttl: int, rdata: dns.rdata.Rdata) -> None:
        """Add one record, and the empty names above it."""
        rdatasets = self.nodes.setdefault(owner, {})
        rdataset = rdatasets.setdefault(rdata.rdtype, dns.rdataset.Rdataset(IN, rdata.rdtype))
        rdataset.add(rdata, ttl)
        # The names between a record and the apex exist too, without data: empty non-terminals (RFC 8020).
        while owner != self.origin:
            owner = owner.parent()
            self.nodes.setdefault(owner, {})

    def delegation(self, name: dns.name.Name) -> dns.name.Name | None:
        """The highest name at or above `name`, below the apex, that is delegated to other servers."""
        below_apex = len(name.labels) - len(self.origin.labels)
        for depth in range(below_apex - 1, -1, -1):
            ancestor = dns.name.Name(name.labels[depth:])
            if NS in self.nodes.get(ancestor, {}):
                return ancestor
        return None

    def lookup(self, name: dns.name.Name) -> dict[int, dns.rdataset.Rdataset] | None:
        """The records at a name, else those of the wildcard that covers it (RFC 4592), else None."""
        if name in self.nodes:
            return self.nodes[name]
        closest_encloser = name.parent()
        while closest_encloser not in self.nodes:
            closest_encloser = closest_encloser.parent()
        return self.nodes.get(dns.name.Name((b"*", *closest_encloser.labels)))

    def rrset(self, name: dns.name.Name, rdtype: int) -> dns.rrset.RRset:
        """The records of one type that are held at exactly this name."""
        return _rrset(name, self.nodes[name][rdtype])


class Snapshot:
    """All zones as they were at one time.monotonic() moment."""

    def __init__(self, store: Store, at: float) -> None:
        self._store = store
        self._at = at
        self._zone_names = {_zone_origin(name): name for name in store.zone_names()}

    def zone_of(self, name: dns.name.Name) -> Zone | None:
        """The zone that is authoritative for a name: the longest match, so that a sub-zone wins."""
        for depth in range(len(name.labels)):
            origin = dns.name.Name(name.labels[depth:])
            if origin in self._zone_names:
                records = self._store.records(self._zone_names[origin], at=self._at)
                return _zone(origin, tuple(records), self._serial())
            if origin == _zone_origin(LAB_ZONE):
                return _lab_zone()
        return None

    def _serial(self) -> int:
        """The wall-clock second that the data are from, so that a lag can be seen in the SOA."""
        return int(time.time() - (time.monotonic() - self._at))


def respond(query: dns.message.Message, snapshot: Snapshot) -> dns.message.Message:
    """Answer one well-formed query."""
    response = dns.message.make_response(query, our_payload=LARGEST_UDP_ANSWER)
    if query.edns > 0:
        response.use_edns(0)
        response.set_rcode(dns.rcode.BADVERS)
    elif query.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
    elif len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
    elif query.question[0].rdclass != IN or query.question[0].rdtype in ZONE_TRANSFERS:
        response.set_rcode(dns.rcode.REFUSED)
    else:
        _answer(response, query.question[0].name, query.question[0].rdtype, snapshot)
    return response


def _answer(
    response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType, snapshot: Snapshot
) -> None:
    """Fill the answer: the records, a CNAME chain as far as the lab's zones go, a referral, or a denial."""
    for links in range(LONGEST_CNAME_CHAIN):
        zone = snapshot.zone_of(name)
        if zone is None:
            # At the first name that is a refusal; later it is where the chain leaves the lab.
            if not links:
                response.set_rcode(dns.rcode.REFUSED)
            return
        delegation = zone.delegation(name)
        if delegation is not None:
            _refer(response, zone, delegation)
            return
        response.flags |= dns.flags.AA
        rdatasets = zone.lookup(name)
        if rdatasets is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            response.authority.append(zone.rrset(zone.origin, SOA))
            return
        # One set is enough for ANY (RFC 8482).
        wanted = next(iter(rdatasets), rdtype) if rdtype == ANY else rdtype
        if wanted in rdatasets:
            response.answer.append(_rrset(name, rdatasets[wanted]))
            return
        if CNAME not in rdatasets:
            response.authority.append(zone.rrset(zone.origin, SOA))
            return
        link = _rrset(name, rdatasets[CNAME])
        if link in response.answer:
            return
        response.answer.append(link)
        name = link[0].target


def _refer(response: dns.message.Message, zone: Zone, delegation: dns.name.Name) -> None:
    """Name the servers of a delegated zone, with their addresses where this zone holds them."""
    servers = zone.rrset(delegation, NS)
    response.authority.append(servers)
    for server in servers:
        if A in zone.nodes.get(server.target, {}):
            response.additional.append(zone.rrset(server.target, A))


def _rrset(name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, rdataset.ttl, list(rdataset))


def _record_rdata(record: Record) -> dns.rdata.Rdata | None:
    """The record in DNS terms; None for what is no DNS record (URL forwarding) or cannot be read as one."""
    try:
        if record.type == "TXT":
            return _txt(record.value)
        value = f"{record.priority or 10} {record.value}" if record.type == "MX" else record.value
        return _rdata(dns.rdatatype.from_text(record.type), value)
    except (dns.exception.DNSException, ValueError) as error:
        log.debug("%s record at %s is not served: %s", record.type, record.rr, error)
        return None


def _txt(value: str) -> dns.rdata.Rdata:
    """A TXT record of as many strings of 255 octets as the value needs (RFC 1035 §3.3.14)."""
    octets = value.encode()
    strings = [octets[start : start + 255] for start in range(0, len(octets), 255)] or [b""]
    return dns.rdtypes.ANY.TXT.TXT(IN, TXT, strings)


def _rdata(rdtype: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    """Parse a record's value; host names in it are complete, with or without the final dot."""
    return dns.rdata.from_text(IN, rdtype, text, origin=dns.name.root, relativize=False)


def _soa(serial: int) -> dns.rdata.Rdata:
    return _rdata(SOA, f"{SERVER_NAMES[0]}. hostmaster.{LAB_ZONE}. {serial} 3600 1200 86400 {APEX_TTL}")


def _owner(rr: str, origin: dns.name.Name) -> dns.name.Name:
    return origin if rr == "@" else dns.name.from_text(rr, origin)


@functools.lru_cache(maxsize=4096)
def _zone_origin(zone: str) -> dns.name.Name:
    return dns.name.from_text(zone)


@functools.lru_cache(maxsize=64)
def _zone(origin: dns.name.Name, records: tuple[Record, ...], serial: int) -> Zone:
    """A zone that was asked for in this second already, and has not changed, is not made again."""
    return Zone(origin, records, serial)


@functools.lru_cache(maxsize=1)
def _lab_zone() -> Zone:
    """The zone that the name servers' own names are in."""
    zone = Zone(_zone_origin(LAB_ZONE), (), serial=1)
    for server in SERVER_NAMES:
        zone.add(dns.name.from_text(server), APEX_TTL, _rdata(A, SERVER_ADDRESS))
    return zone


def _format_error(message: bytes) -> bytes:
    """FORMERR with the query's id, as much as can be said about a message that cannot be read."""
    (message_id,) = struct.unpack_from("!H", message)
    return struct.pack("!HHHHHH", message_id, dns.flags.QR | dns.rcode.FORMERR, 0, 0, 0, 0)
