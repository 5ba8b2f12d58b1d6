"""Which zone holds a name, which name servers answer for it, and waiting until all of them do. RFC 1034, 1035.

Nothing here asks a recursive resolver about a TXT record that may not be there yet: the resolver would remember
the "no" (RFC 2308), and it may be the one the CA asks. The authoritative servers are asked themselves.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver

from common import show
from common.failure import Failure

QUERY_TIMEOUT = 2.0  # seconds for one question to one server
LONGEST_CNAME_CHAIN = 8
PORT = 53


@dataclass(frozen=True)
class NameServer:
    """One address of an authoritative name server."""

    host: str
    address: str
    port: int = PORT

    def __str__(self) -> str:
        port = "" if self.port == PORT else f":{self.port}"
        return f"{self.address}{port}" if self.host == self.address else f"{self.host} ({self.address}{port})"


def longest_zone(name: str, zones: Iterable[str]) -> str | None:
    """The zone that holds a name: the longest of the given zones that is the name or a suffix of it, by labels."""
    labels = name.rstrip(".").lower().split(".")
    suffixes = [".".join(labels[start:]) for start in range(len(labels))]
    known = {zone.rstrip(".").lower() for zone in zones}
    return next((suffix for suffix in suffixes if suffix in known), None)


class NameServers:
    """Finds the authoritative servers of names; each zone is looked up once.

    override: (address, port) pairs that answer for every name, in place of what the DNS says
    """

    def __init__(self, override: Iterable[tuple[str, int]] = ()) -> None:
        self._override = tuple(NameServer(address, address, port) for address, port in override)
        self._of_zone: dict[str, tuple[NameServer, ...]] = {}

    def for_name(self, name: str) -> tuple[NameServer, ...]:
        """The servers that answer for a name, found from its parent so that the name itself is not asked about."""
        if self._override:
            return self._override
        return self.for_zone(_zone_of(name.partition(".")[2]))

    def for_zone(self, zone: str) -> tuple[NameServer, ...]:
        """Every address of every name server of a zone."""
        if self._override:
            return self._override
        if zone not in self._of_zone:
            self._of_zone[zone] = _look_up_servers(zone)
        return self._of_zone[zone]

    def records(self, name: str, kind: str) -> list[Any]:
        """A name's records of one kind, CNAMEs followed, such as "CAA" or "NS"; Failure when nobody can say.

        This machine's resolver is asked; in its place the overriding servers, which know their own zones only.
        """
        if self._override:
            answer = _ask(name, kind, self._override[0])
            if answer == "REFUSED":
                return []
            if isinstance(answer, str):
                raise Failure(f"{kind} records of {name}: {self._override[0]}: {answer}", "check the network")
            wanted = dns.rdatatype.from_text(kind)
            return [record for rrset in answer.answer if rrset.rdtype == wanted for record in rrset]
        try:
            return list(dns.resolver.resolve(name, kind, raise_on_no_answer=False).rrset or ())
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise Failure(
                f"{kind} records of {name}: {error}",
                "check the domain's name servers, DNSSEC, and the network",
            ) from None

    def follow_cname(self, name: str) -> str:
        """Where a name leads: itself, or the end of its chain of CNAME records (RFC 1034 section 3.6.2)."""
        seen = [name]
        while target := _cname(seen[-1], self.for_name(seen[-1])):
            if target in seen or len(seen) > LONGEST_CNAME_CHAIN:
                raise Failure(
                    f"{name}: its CNAME records lead nowhere: {' -> '.join([*seen, target])}",
                    "mend the CNAME",
                )
            seen.append(target)
        if len(seen) > 1:
            show.facts(CNAME=" -> ".join(seen))
        return seen[-1]


def wait_until_visible(
    wanted: Mapping[str, set[str]], servers: Mapping[str, tuple[NameServer, ...]], timeout: float
) -> None:
    """Wait until every server of every name answers with all its TXT values; Failure after `timeout` seconds.

    wanted: name -> TXT values; servers: name -> who answers for it

    Asked at once, then from 0.25 s on ever more slowly, to every 2 s; whoever has answered well is not asked again.
    """
    started = time.monotonic()
    missing = [(name, server) for name in wanted for server in servers[name]]
    total, pause = len(missing), 0.25
    with show.waiting(timeout) as waiting, ThreadPoolExecutor(max_workers=max(1, min(32, total))) as pool:
        while True:
            answers = list(pool.map(lambda pair: txt_values(*pair), missing))
            lacking = [
                (name, server, answer)
                for (name, server), answer in zip(missing, answers, strict=True)
                if not isinstance(answer, frozenset) or not wanted[name] <= answer
            ]
            missing = [(name, server) for name, server, _ in lacking]
            elapsed = time.monotonic() - started
            if not missing:
                break
            if elapsed >= timeout:
                raise Failure(
                    _not_visible(lacking, elapsed),
                    "see which servers the domain is delegated to, or raise [dns] timeout",
                )
            name, server, answer = lacking[0]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            state = "" if isinstance(answer, frozenset) else f" ({answer})"
            waiting.update(f"TXT {name} on {server}{state}{more}")
            time.sleep(min(pause, max(timeout - elapsed, 0)))
            pause = min(pause * 1.5, 2)
    show.facts(visible=f"{len(wanted)} names, {total} answers from name servers, after {elapsed:.1f} s")


def txt_values(name: str, server: NameServer) -> frozenset[str] | str:
    """The TXT values a server has at a name; a text saying why there is no answer."""
    answer = _ask(name, "TXT", server)
    if isinstance(answer, str):
        return answer
    return frozenset(
        # RFC 1035 section 3.3.14: one value may come in several strings; together they are the value.
        b"".join(record.strings).decode("utf-8", errors="replace")
        for rrset in answer.answer
        if rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
    )


def unanswered(zone: str, server: NameServer, tcp: bool = False) -> str | None:
    """Why a server does not answer for a zone by UDP, or by TCP; None when it does (RFC 7766: both are needed)."""
    query = dns.message.make_query(zone, "SOA", flags=0)
    try:
        (dns.query.tcp if tcp else dns.query.udp)(query, server.address, QUERY_TIMEOUT, server.port)
    except dns.exception.Timeout:
        return "no answer"
    except (dns.exception.DNSException, OSError, EOFError) as error:
        return str(error) or type(error).__name__
    return None


def _cname(name: str, servers: tuple[NameServer, ...]) -> str | None:
    """The target of a name's CNAME record, from the first server that answers; None when it has none."""
    reasons = {}
    # Each is asked once more, as a packet may be lost and a server be busy.
    for server in (*servers, *servers):
        answer = _ask(name, "CNAME", server)
        if isinstance(answer, str):
            reasons[server] = f"{server}: {answer}"
            continue
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.CNAME and rrset.name == dns.name.from_text(name):
                return rrset[0].target.to_text(omit_final_dot=True).lower()
        return None
    raise Failure(
        f"no name server has an answer for {name}: {'; '.join(reasons.values())}",
        "check the domain's delegation and the network",
    )


def _ask(name: str, kind: str, server: NameServer) -> dns.message.Message | str:
    """One question to one server, by TCP when UDP is too small; a text when there is no usable answer."""
    started = time.monotonic()
    answer = _query(name, kind, server)
    status, told = answer, []
    if isinstance(answer, dns.message.Message):
        status = dns.rcode.to_text(answer.rcode())
        told = [line for rrset in answer.answer for line in rrset.to_text().splitlines()]
    show.trace(
        "dns",
        time.monotonic() - started,
        method="QUERY",
        url=f"dns:{name}?type={kind}",
        sent={"name": name, "type": kind, "server": str(server)},
        status=str(status),
        received={"answer": told},
    )
    return answer


def _query(name: str, kind: str, server: NameServer) -> dns.message.Message | str:
    # RD off: this server knows the answer itself, or it is not the one to ask.
    query = dns.message.make_query(name, kind, flags=0, use_edns=0, payload=1232)
    try:
        answer, _ = dns.query.udp_with_fallback(query, server.address, QUERY_TIMEOUT, server.port)
    except dns.exception.Timeout:
        return "no answer"
    except (dns.exception.DNSException, OSError, EOFError) as error:
        return str(error) or type(error).__name__
    if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return dns.rcode.to_text(answer.rcode())
    return answer


def _zone_of(name: str) -> str:
    try:
        return dns.resolver.zone_for_name(name).to_text(omit_final_dot=True)
    except (dns.exception.DNSException, OSError) as error:
        raise Failure(
            f"cannot find the zone of {name}: {error}", "is the name registered? is there a network?"
        ) from None


def _look_up_servers(zone: str) -> tuple[NameServer, ...]:
    """Every address of the zone's name servers that this machine has a route to."""
    try:
        hosts = sorted(
            record.target.to_text(omit_final_dot=True) for record in dns.resolver.resolve(zone, "NS")
        )
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = list(pool.map(_addresses, hosts))
    except (dns.exception.DNSException, OSError) as error:
        raise Failure(
            f"cannot find the name servers of {zone}: {error}",
            "check the domain's delegation and the network",
        ) from None
    servers = tuple(
        NameServer(host, address, PORT)
        for host, addresses in zip(hosts, found, strict=True)
        for address in addresses
        if _reachable(address)
    )
    if not servers:
        raise Failure(
            f"{zone}: none of its name servers has an address to ask: {', '.join(hosts)}",
            "check the delegation",
        )
    return servers


def _addresses(host: str) -> list[str]:
    return sorted(dns.resolver.resolve_name(host).addresses())


def _reachable(address: str) -> bool:
    """Whether there is a route at all: many machines have IPv6 addresses in sight and none to go by."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, PORT))  # UDP: no packet is sent
    except OSError:
        return False
    return True


def _not_visible(lacking: list[Any], seconds: float) -> str:
    lines = [f"after {seconds:.0f} s the TXT records are still not on every authoritative name server:"]
    for name, server, answer in lacking[:10]:
        seen = answer if isinstance(answer, str) else f"has {', '.join(sorted(answer)) or 'no TXT there'}"
        lines.append(f"  {name} on {server}: {seen}")
    if len(lacking) > 10:
        lines.append(f"  and {len(lacking) - 10} more")
    return "\n".join(lines)
