"""The lab's name servers, asked with dnspython as any other client would."""

import socket
import struct
from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.alibaba import Cloud
from lab.nameserver import NameServer

TIMEOUT = 10


@pytest.fixture
def cloud() -> Cloud:
    cloud = Cloud()
    for zone in ("example.test", "dev.example.test", "workshop.com.test"):
        cloud.dns.add_zone(zone)
    cloud.dns.add_zone("partner.test", account="partner")
    return cloud


@pytest.fixture
def server(cloud: Cloud) -> Iterator[NameServer]:
    with NameServer(cloud.dns) as server:
        yield server


def ask(
    server: NameServer, name: str, rdtype: str, tcp: bool = False, **options: object
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, **options)
    how = dns.query.tcp if tcp else dns.query.udp
    return how(query, server.host, port=server.port, timeout=TIMEOUT)


def values(answer: dns.message.Message) -> list[str]:
    """The answer section as "owner type value" texts; the order within a record set has no meaning."""
    return [
        f"{rrset.name.to_text(True)} {dns.rdatatype.to_text(rrset.rdtype)} {rdata.to_text()}"
        for rrset in answer.answer
        for rdata in sorted(rrset)
    ]


def soa_owner(answer: dns.message.Message) -> str:
    (soa,) = answer.authority
    assert soa.rdtype == dns.rdatatype.SOA
    return soa.name.to_text(True)


@pytest.mark.parametrize("tcp", [False, True])
def test_a_record_is_answered_with_authority_by_udp_and_tcp_on_one_port(
    cloud: Cloud, server: NameServer, tcp: bool
) -> None:
    cloud.dns.add_record("example.test", rr="www", type="A", value="192.0.2.1", ttl=720)

    answer = ask(server, "www.example.test", "A", tcp=tcp)

    assert values(answer) == ["www.example.test A 192.0.2.1"]
    assert answer.answer[0].ttl == 720
    assert answer.flags & dns.flags.AA
    assert not answer.flags & dns.flags.RA


def test_the_question_comes_back_in_the_case_it_was_asked(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="www", type="A", value="192.0.2.1")

    answer = ask(server, "wWw.eXample.TEST", "A")

    assert answer.question[0].name.labels == dns.name.from_text("wWw.eXample.TEST").labels
    assert len(answer.answer) == 1


@pytest.mark.parametrize(
    ("type_", "value", "priority", "expected"),
    [
        ("AAAA", "2001:db8::1", None, "2001:db8::1"),
        ("CNAME", "target.example.org", None, "target.example.org."),
        ("MX", "mail.example.test", 5, "5 mail.example.test."),
        ("CAA", '0 issue "ca.example"', None, '0 issue "ca.example"'),
        ("SRV", "1 2 443 www.example.test", None, "1 2 443 www.example.test."),
        ("TXT", 'with spaces and a " quote', None, '"with spaces and a \\" quote"'),
    ],
)
def test_every_record_type_comes_out_in_dns_terms(
    cloud: Cloud, server: NameServer, type_: str, value: str, priority: int | None, expected: str
) -> None:
    cloud.dns.add_record("example.test", rr="a", type=type_, value=value, priority=priority)

    assert values(ask(server, "a.example.test", type_)) == [f"a.example.test {type_} {expected}"]


def test_records_that_are_no_dns_records_or_of_another_line_are_not_served(
    cloud: Cloud, server: NameServer
) -> None:
    cloud.dns.add_record("example.test", rr="a", type="REDIRECT_URL", value="http://www.example.org")
    cloud.dns.add_record("example.test", rr="a", type="TXT", value="abroad", line="oversea")
    cloud.dns.add_record("example.test", rr="a", type="TXT", value="paused", status="DISABLE")
    cloud.dns.add_record("example.test", rr="a", type="TXT", value="here")

    assert values(ask(server, "a.example.test", "TXT")) == ['a.example.test TXT "here"']


def test_a_record_is_visible_from_the_moment_it_is_added(cloud: Cloud, server: NameServer) -> None:
    assert ask(server, "_acme-challenge.example.test", "TXT").rcode() == dns.rcode.NXDOMAIN

    cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value="new")

    assert values(ask(server, "_acme-challenge.example.test", "TXT")) == [
        '_acme-challenge.example.test TXT "new"'
    ]


def test_two_servers_lag_by_delays_of_their_own_which_can_change_while_they_run(cloud: Cloud) -> None:
    with NameServer(cloud.dns) as prompt, NameServer(cloud.dns, lag=600) as late:
        cloud.dns.add_record("example.test", rr="new", type="A", value="192.0.2.1")

        assert ask(prompt, "new.example.test", "A").rcode() == dns.rcode.NOERROR
        assert ask(late, "new.example.test", "A").rcode() == dns.rcode.NXDOMAIN

        prompt.lag, late.lag = 600, 0

        assert ask(prompt, "new.example.test", "A").rcode() == dns.rcode.NXDOMAIN
        assert ask(late, "new.example.test", "A").rcode() == dns.rcode.NOERROR


def test_the_soa_serial_tells_how_late_a_server_is(cloud: Cloud) -> None:
    with NameServer(cloud.dns) as prompt, NameServer(cloud.dns, lag=600) as late:
        serials = [ask(s, "example.test", "SOA").answer[0][0].serial for s in (late, prompt)]

    assert serials[1] - serials[0] >= 599


def test_a_name_that_does_not_exist_is_nxdomain_with_the_zones_soa(server: NameServer) -> None:
    answer = ask(server, "no.such.example.test", "A")

    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert answer.flags & dns.flags.AA
    assert soa_owner(answer) == "example.test"


def test_a_name_with_other_types_has_no_data_and_is_not_nxdomain(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="www", type="A", value="192.0.2.1")

    answer = ask(server, "www.example.test", "TXT")

    assert answer.rcode() == dns.rcode.NOERROR
    assert not answer.answer
    assert soa_owner(answer) == "example.test"


def test_a_name_between_a_record_and_the_apex_exists_without_data(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="_acme-challenge.www", type="TXT", value="x")

    assert ask(server, "www.example.test", "A").rcode() == dns.rcode.NOERROR
    assert ask(server, "wwww.example.test", "A").rcode() == dns.rcode.NXDOMAIN


def test_the_apex_has_soa_and_ns_and_the_servers_names_have_addresses(server: NameServer) -> None:
    assert values(ask(server, "example.test", "NS")) == [
        "example.test NS ns1.lab.test.",
        "example.test NS ns2.lab.test.",
    ]
    assert ask(server, "example.test", "SOA").answer[0][0].mname.to_text() == "ns1.lab.test."
    assert values(ask(server, "ns1.lab.test", "A")) == ["ns1.lab.test A 127.0.0.1"]
    assert values(ask(server, "ns2.lab.test", "A")) == ["ns2.lab.test A 127.0.0.1"]
    assert ask(server, "ns3.lab.test", "A").rcode() == dns.rcode.NXDOMAIN


def test_a_delegated_sub_zone_is_answered_from_its_own_zone(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="dev", type="NS", value="ns1.lab.test")
    cloud.dns.add_record("example.test", rr="www.dev", type="TXT", value="in the parent: never seen")
    cloud.dns.add_record("dev.example.test", rr="www", type="TXT", value="in the sub-zone")

    answer = ask(server, "www.dev.example.test", "TXT")

    assert values(answer) == ['www.dev.example.test TXT "in the sub-zone"']
    assert answer.flags & dns.flags.AA
    assert soa_owner(ask(server, "no.dev.example.test", "TXT")) == "dev.example.test"


def test_a_zone_that_is_delegated_elsewhere_gets_a_referral_with_glue(
    cloud: Cloud, server: NameServer
) -> None:
    cloud.dns.add_record("example.test", rr="away", type="NS", value="ns.away.example.test")
    cloud.dns.add_record("example.test", rr="ns.away", type="A", value="192.0.2.53")

    answer = ask(server, "www.away.example.test", "A")

    assert not answer.answer
    assert not answer.flags & dns.flags.AA
    assert answer.authority[0].to_text() == "away.example.test. 600 IN NS ns.away.example.test."
    assert answer.additional[0].to_text() == "ns.away.example.test. 600 IN A 192.0.2.53"


def test_a_wildcard_answers_for_names_that_do_not_exist(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="*", type="A", value="192.0.2.7")
    cloud.dns.add_record("example.test", rr="there", type="TXT", value="x")
    cloud.dns.add_record("example.test", rr="below.empty", type="TXT", value="x")

    assert values(ask(server, "any.example.test", "A")) == ["any.example.test A 192.0.2.7"]
    assert values(ask(server, "a.b.example.test", "A")) == ["a.b.example.test A 192.0.2.7"]
    # Another type: no data. A name that exists, even without data: no wildcard (RFC 4592 section 2.2.1).
    assert ask(server, "any.example.test", "TXT").rcode() == dns.rcode.NOERROR
    assert not ask(server, "there.example.test", "A").answer
    assert not ask(server, "empty.example.test", "A").answer
    assert ask(server, "no.below.empty.example.test", "A").rcode() == dns.rcode.NXDOMAIN


def test_a_cname_is_followed_through_the_zones_of_every_account(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record(
        "partner.test", rr="_acme-challenge", type="CNAME", value="partner.validation.example.test"
    )
    cloud.dns.add_record("example.test", rr="partner.validation", type="TXT", value="delegated")

    assert values(ask(server, "_acme-challenge.partner.test", "TXT")) == [
        "_acme-challenge.partner.test CNAME partner.validation.example.test.",
        'partner.validation.example.test TXT "delegated"',
    ]


def test_a_cname_itself_is_answered_when_it_is_asked_for(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="a", type="CNAME", value="b.example.test")

    assert values(ask(server, "a.example.test", "CNAME")) == ["a.example.test CNAME b.example.test."]


def test_a_cname_to_nothing_in_the_lab_is_nxdomain_and_one_out_of_the_lab_is_left_to_the_asker(
    cloud: Cloud, server: NameServer
) -> None:
    cloud.dns.add_record("example.test", rr="broken", type="CNAME", value="missing.partner.test")
    cloud.dns.add_record("example.test", rr="out", type="CNAME", value="www.example.org")

    broken = ask(server, "broken.example.test", "A")
    assert broken.rcode() == dns.rcode.NXDOMAIN
    assert values(broken) == ["broken.example.test CNAME missing.partner.test."]
    assert soa_owner(broken) == "partner.test"

    out = ask(server, "out.example.test", "A")
    assert out.rcode() == dns.rcode.NOERROR
    assert values(out) == ["out.example.test CNAME www.example.org."]


def test_a_cname_loop_ends(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="a", type="CNAME", value="b.example.test")
    cloud.dns.add_record("example.test", rr="b", type="CNAME", value="a.example.test")

    reply = server.reply(dns.message.make_query("a.example.test", "A").to_wire(), "udp")

    # Counted on the wire, where a record that comes twice is seen.
    assert reply is not None
    assert int.from_bytes(reply[6:8], "big") == 2


def test_a_cname_chain_that_grows_for_ever_ends(cloud: Cloud, server: NameServer) -> None:
    for number in range(60):
        value = f"c{number + 1}.example.test"
        cloud.dns.add_record("example.test", rr=f"c{number}", type="CNAME", value=value)

    assert 8 <= len(ask(server, "c0.example.test", "A", tcp=True).answer) < 60


def test_a_long_txt_value_is_split_into_strings_of_255_octets(cloud: Cloud, server: NameServer) -> None:
    value = "".join(chr(97 + number % 26) for number in range(600))
    cloud.dns.add_record("example.test", rr="long", type="TXT", value=value)

    (record,) = ask(server, "long.example.test", "TXT", tcp=True).answer[0]

    assert [len(string) for string in record.strings] == [255, 255, 90]
    assert b"".join(record.strings).decode() == value


@pytest.fixture
def big_answer(cloud: Cloud) -> str:
    """A name whose TXT records need about 1000 octets."""
    for number in range(5):
        cloud.dns.add_record("example.test", rr="big", type="TXT", value=f"{number}" * 180)
    return "big.example.test"


def test_an_answer_over_512_octets_is_truncated_by_udp_and_whole_by_tcp(
    server: NameServer, big_answer: str
) -> None:
    truncated = ask(server, big_answer, "TXT")
    assert truncated.flags & dns.flags.TC

    whole = ask(server, big_answer, "TXT", tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 5


def test_an_answer_goes_by_udp_as_far_as_the_asker_advertises(server: NameServer, big_answer: str) -> None:
    roomy = ask(server, big_answer, "TXT", use_edns=0, payload=1232)
    assert len(roomy.answer[0]) == 5
    assert roomy.edns == 0

    tight = ask(server, big_answer, "TXT", use_edns=0, payload=600)
    assert tight.flags & dns.flags.TC
    assert len(tight.to_wire()) <= 600


def test_any_is_answered_with_one_record_set(cloud: Cloud, server: NameServer) -> None:
    cloud.dns.add_record("example.test", rr="www", type="A", value="192.0.2.1")
    cloud.dns.add_record("example.test", rr="www", type="TXT", value="x")

    assert len(ask(server, "www.example.test", "ANY").answer) == 1


def test_names_outside_the_zones_and_zone_transfers_and_other_classes_are_refused(
    server: NameServer,
) -> None:
    refused = [
        ask(server, "www.example.org", "A"),
        ask(server, "test", "A"),
        ask(server, ".", "NS"),
        dns.query.udp(
            dns.message.make_query("version.bind", "TXT", "CH"),
            server.host,
            port=server.port,
            timeout=TIMEOUT,
        ),
    ]
    transfer = dns.message.make_query("example.test", "AXFR").to_wire()
    reply = server.reply(transfer, "tcp")
    assert reply is not None
    refused.append(dns.message.from_wire(reply))

    assert {answer.rcode() for answer in refused} == {dns.rcode.REFUSED}
    assert not any(answer.flags & dns.flags.AA or answer.answer for answer in refused)


def test_other_operations_are_not_implemented_and_an_unknown_edns_version_is_said_so(
    server: NameServer,
) -> None:
    notify = dns.message.make_query("example.test", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    answer = dns.query.udp(notify, server.host, port=server.port, timeout=TIMEOUT)
    assert answer.rcode() == dns.rcode.NOTIMP

    assert ask(server, "example.test", "SOA", use_edns=1).rcode() == dns.rcode.BADVERS


def exchange(server: NameServer, message: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        client.sendto(message, (server.host, server.port))
        return client.recv(65535)


def test_a_message_that_cannot_be_read_gets_format_error_with_its_id(server: NameServer) -> None:
    question = dns.message.make_query("example.test", "A").to_wire()

    for message in (b"\xab\xcd" + b"garbage", b"\xab\xcd" + question[2:-1], b"\xab\xcd"):
        reply = exchange(server, message)
        assert reply[:2] == b"\xab\xcd"
        assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR


def test_two_questions_or_none_are_a_format_error(server: NameServer) -> None:
    query = dns.message.make_query("example.test", "A")
    query.question.append(query.question[0].copy())
    assert dns.query.udp(query, server.host, port=server.port, timeout=TIMEOUT).rcode() == dns.rcode.FORMERR

    query.question.clear()
    assert dns.message.from_wire(exchange(server, query.to_wire())).rcode() == dns.rcode.FORMERR


def test_silence_answers_what_has_no_id_and_what_is_itself_an_answer(server: NameServer) -> None:
    answer = dns.message.make_response(dns.message.make_query("example.test", "A"))

    assert server.reply(b"", "udp") is None
    assert server.reply(b"\x01", "udp") is None
    assert server.reply(answer.to_wire(), "udp") is None


@given(message=st.binary(max_size=300))
def test_no_bytes_bring_an_error_out_of_the_server(message: bytes) -> None:
    reply = NameServer(Cloud().dns).reply(message, "udp")

    assert reply is None or reply[:2] == message[:2]


@given(position=st.integers(0, 45), octet=st.integers(0, 255))
def test_no_damaged_query_brings_an_error_out_of_the_server(position: int, octet: int) -> None:
    message = bytearray(dns.message.make_query("_acme-challenge.example.test", "TXT", use_edns=0).to_wire())
    message[position] = octet

    reply = NameServer(Cloud().dns).reply(bytes(message), "udp")

    assert reply is None or dns.message.from_wire(reply).id == int.from_bytes(message[:2], "big")


def test_a_store_that_fails_is_a_server_failure_and_the_server_goes_on(cloud: Cloud) -> None:
    class Failing:
        broken = True

        def zone_names(self) -> list[str]:
            if self.broken:
                raise RuntimeError("store is broken")
            return cloud.dns.zone_names()

        records = cloud.dns.records

    store = Failing()
    with NameServer(store) as server:
        assert ask(server, "example.test", "SOA").rcode() == dns.rcode.SERVFAIL
        store.broken = False
        assert ask(server, "example.test", "SOA").rcode() == dns.rcode.NOERROR


def framed(name: str) -> bytes:
    message = dns.message.make_query(name, "SOA").to_wire()
    return struct.pack("!H", len(message)) + message


def receive_framed(connection: socket.socket) -> dns.message.Message:
    file = connection.makefile("rb")
    (length,) = struct.unpack("!H", file.read(2))
    return dns.message.from_wire(file.read(length))


def test_one_tcp_connection_takes_several_queries_in_pieces(server: NameServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in framed("example.test"):
            connection.send(bytes([octet]))
        assert receive_framed(connection).rcode() == dns.rcode.NOERROR

        connection.sendall(framed("example.org"))
        assert receive_framed(connection).rcode() == dns.rcode.REFUSED


def test_a_silent_tcp_client_is_let_go_and_holds_nobody_up(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.nameserver.TCP_TIMEOUT", 0.2)
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as silent:
        silent.sendall(b"\x00")

        assert ask(server, "example.test", "SOA", tcp=True).rcode() == dns.rcode.NOERROR
        assert silent.recv(1) == b""


def test_queries_are_noted_and_told(server: NameServer) -> None:
    told = []
    server.on_query = told.append

    ask(server, "www.example.test", "TXT")
    ask(server, "example.test", "A", tcp=True)

    noted = [(query.transport, query.name, query.type) for query in server.queries]
    assert noted == [("udp", "www.example.test", "TXT"), ("tcp", "example.test", "A")]
    assert told == list(server.queries)


def test_stop_frees_the_port_and_a_taken_port_is_refused(cloud: Cloud) -> None:
    with NameServer(cloud.dns) as first, pytest.raises(OSError):
        NameServer(cloud.dns, port=first.port).start()

    with NameServer(cloud.dns, port=first.port) as second:
        assert second.port == first.port
        assert ask(second, "example.test", "SOA", tcp=True).answer
