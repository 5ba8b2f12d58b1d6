"""What may go wrong in DNS. A call's request is a Question, its answer a message, octets, or None for silence."""

from collections.abc import Callable
from typing import NamedTuple

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from lab.faults import Call, Part

PART = Part("DNS", ("1", "2", "TXT", "CNAME"))

Answer = dns.message.Message | bytes | None


class Question(NamedTuple):
    """What a name server is asked, and how: by "udp" or "tcp"; at() answers as it was some seconds ago."""

    query: dns.message.Message
    transport: str
    at: Callable[[float], dns.message.Message]

    @property
    def is_about_a_challenge(self) -> bool:
        return self.query.question[0].name.labels[0].lower() == b"_acme-challenge"


def _refusal(call: Call, rcode: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(call.request.query)
    response.set_rcode(rcode)
    return response


@PART.fault()
def dns_lag(call: Call) -> Answer:
    """A server answers from 5 s ago, or =SECONDS."""
    return call.request.at(5.0 if call.value is None else call.value)


@PART.fault()
def dns_servfail(call: Call) -> Answer:
    """SERVFAIL."""
    return _refusal(call, dns.rcode.SERVFAIL)


@PART.fault()
def dns_refused(call: Call) -> Answer:
    """REFUSED, as by a server that has not heard of the zone."""
    return _refusal(call, dns.rcode.REFUSED)


@PART.fault()
def dns_nxdomain(call: Call) -> Answer:
    """NXDOMAIN: there is no such name."""
    return _refusal(call, dns.rcode.NXDOMAIN)


@PART.fault()
def dns_timeout(call: Call) -> Answer:
    """UDP is not answered; TCP is."""
    return call.ask() if call.request.transport == "tcp" else None


@PART.fault()
def dns_dead(call: Call) -> Answer:
    """Nothing is answered, neither by UDP nor by TCP."""
    return None


@PART.fault()
def dns_truncated(call: Call) -> Answer:
    """Answers by UDP are truncated: one has to ask again by TCP."""
    response = call.ask()
    if call.request.transport == "tcp" or not isinstance(response, dns.message.Message):
        return response
    response.answer, response.authority, response.additional = [], [], []
    response.flags |= dns.flags.TC
    return response


@PART.fault()
def dns_garbage(call: Call) -> Answer:
    """Answers are octets without a meaning, behind the right id."""
    return call.request.query.id.to_bytes(2, "big") + b"\x84\x00" + bytes(range(255, 0, -1))


@PART.fault()
def dns_cname_loop(call: Call) -> Answer:
    """The names of challenges are CNAMEs that lead in a circle."""
    if not call.request.is_about_a_challenge:
        return call.ask()
    name = call.request.query.question[0].name
    response = dns.message.make_response(call.request.query)
    response.flags |= dns.flags.AA
    there = dns.name.Name((b"_acme-challenge", b"loop", *name.labels[1:]))
    if name.labels[1:2] == (b"loop",):
        there = dns.name.Name((b"_acme-challenge", *name.labels[2:]))
    response.answer.append(dns.rrset.from_text(name, 600, "IN", "CNAME", there.to_text()))
    return response


@PART.fault("TXT")
def dns_stale(call: Call) -> Answer:
    """Twelve TXT values of long ago stand beside the right one."""
    response = call.ask()
    if not call.request.is_about_a_challenge or not isinstance(response, dns.message.Message):
        return response
    name = call.request.query.question[0].name
    if call.request.query.question[0].rdtype == dns.rdatatype.TXT:
        old = [f'"{number:02}-left-by-a-program-that-does-not-clean-up"' for number in range(12)]
        response.set_rcode(dns.rcode.NOERROR)
        response.answer.append(dns.rrset.from_text(name, 600, "IN", "TXT", *old))
    return response
