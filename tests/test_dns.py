"""common/dns.py against the lab's real name servers: zones, servers, CNAMEs, and waiting for all of them."""

import socket
import threading
from collections.abc import Iterator

import dns.resolver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import dns as our_dns
from common.failure import Failure
from lab.alibaba import Cloud
from lab.nameserver import NameServer

NAME = "_acme-challenge.example.test"


@pytest.fixture
def cloud() -> Cloud:
    cloud = Cloud()
    cloud.dns.add_zone("example.test", account="learner")
    cloud.dns.add_zone("dev.example.test", account="learner")
    return cloud


@pytest.fixture
def servers(cloud: Cloud) -> Iterator[tuple[NameServer, NameServer]]:
    with NameServer(cloud.dns, lag=0.0) as first, NameServer(cloud.dns, lag=0.4) as second:
        yield first, second


def pair(server: NameServer) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


def our_servers(*servers: NameServer) -> tuple[our_dns.NameServer, ...]:
    return our_dns.NameServers([pair(server) for server in servers]).for_name(NAME)


def unused_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("_acme-challenge.example.com", "example.com"),
        ("_acme-challenge.www.example.com", "example.com"),
        ("example.com", "example.com"),
        ("_acme-challenge.shop.example.com.cn", "example.com.cn"),
        ("_acme-challenge.www.dev.example.com", "dev.example.com"),
        ("_acme-challenge.notexample.com", None),
        ("_acme-challenge.example.org", None),
        ("_ACME-Challenge.WWW.Example.COM.", "example.com"),
    ],
)
def test_the_zone_is_the_longest_of_our_own_domains_by_whole_labels(name: str, zone: str | None):
    assert our_dns.longest_zone(name, ["example.com", "dev.example.com", "example.com.cn", "com.cn"]) == zone


@given(st.lists(st.sampled_from(["a", "b", "c", "com"]), min_size=1, max_size=5).map(".".join), st.data())
def test_a_zone_is_always_a_suffix_by_labels(name: str, data: st.DataObject):
    zones = data.draw(st.lists(st.sampled_from(["com", "a.com", "b.a.com", "c", "b.c"]), max_size=5))
    zone = our_dns.longest_zone(name, zones)
    candidates = [z for z in zones if name == z or name.endswith("." + z)]
    assert zone == (max(candidates, key=len) if candidates else None)


def test_waiting_ends_when_the_slowest_server_has_every_value(cloud: Cloud, servers):
    for value in ("one", "two"):
        cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value=value)
    our_dns.wait_until_visible({NAME: {"one", "two"}}, {NAME: our_servers(*servers)}, timeout=20)
    answers = [our_dns.txt_values(NAME, server) for server in our_servers(*servers)]
    assert answers == [frozenset({"one", "two"})] * 2


def test_other_values_at_the_name_do_not_matter_and_one_missing_does(cloud: Cloud, servers):
    for value in ("old", "one"):
        cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value=value)
    our_dns.wait_until_visible({NAME: {"one"}}, {NAME: our_servers(*servers)}, timeout=20)
    with pytest.raises(Failure) as failure:
        our_dns.wait_until_visible({NAME: {"one", "two"}}, {NAME: our_servers(*servers)}, timeout=0.1)
    assert all(f"{NAME} on {server}" in failure.value.what for server in our_servers(*servers))
    assert "has old, one" in failure.value.what


def test_a_long_value_in_several_strings_comes_by_tcp_and_counts_as_one(cloud: Cloud, servers):
    values = {chr(97 + n) * 500 for n in range(6)}
    for value in values:
        cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value=value)
    our_dns.wait_until_visible({NAME: values}, {NAME: our_servers(*servers)}, timeout=20)
    assert "tcp" in {query.transport.lower() for query in servers[0].queries}


def test_a_dead_server_is_named_and_the_wait_ends(cloud: Cloud, servers):
    cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value="one")
    dead = our_dns.NameServer("127.0.0.1", "127.0.0.1", unused_port())
    with pytest.raises(Failure, match=rf"{NAME} on 127\.0\.0\.1:{dead.port}: ") as failure:
        our_dns.wait_until_visible({NAME: {"one"}}, {NAME: (*our_servers(servers[0]), dead)}, timeout=0.3)
    assert str(our_servers(servers[0])[0].port) not in failure.value.what


def test_a_server_that_refuses_is_quoted(servers):
    name = "_acme-challenge.elsewhere.example"
    with pytest.raises(Failure, match="REFUSED"):
        our_dns.wait_until_visible({name: {"x"}}, {name: our_servers(servers[0])}, timeout=0.1)


def test_a_person_sees_what_is_waited_for_and_where(
    cloud: Cloud, servers, capsys: pytest.CaptureFixture[str]
):
    timer = threading.Timer(
        0.3, lambda: cloud.dns.add_record("example.test", rr="_acme-challenge", type="TXT", value="one")
    )
    timer.start()
    our_dns.wait_until_visible({NAME: {"one"}}, {NAME: our_servers(*servers)}, timeout=20)
    printed = capsys.readouterr().err
    assert f"waiting for TXT {NAME} on 127.0.0.1:" in printed
    assert "of at most 20 s" in printed


def test_a_cname_is_followed_to_its_end(cloud: Cloud, servers):
    cloud.dns.add_record("example.test", rr="_acme-challenge", type="CNAME", value="middle.example.test")
    cloud.dns.add_record("example.test", rr="middle", type="CNAME", value="end.dev.example.test")
    finder = our_dns.NameServers([pair(servers[0])])
    assert finder.follow_cname(NAME) == "end.dev.example.test"
    assert finder.follow_cname("_acme-challenge.www.example.test") == "_acme-challenge.www.example.test"


def test_a_cname_loop_is_a_clear_failure(cloud: Cloud, servers):
    cloud.dns.add_record("example.test", rr="_acme-challenge", type="CNAME", value="other.example.test")
    cloud.dns.add_record("example.test", rr="other", type="CNAME", value=NAME)
    with pytest.raises(Failure, match="lead nowhere") as failure:
        our_dns.NameServers([pair(servers[0])]).follow_cname(NAME)
    assert "mend" in failure.value.remedy


def test_when_no_server_answers_each_is_named(servers):
    dead = [("127.0.0.1", unused_port()), ("127.0.0.1", unused_port())]
    with pytest.raises(Failure) as failure:
        our_dns.NameServers(dead).follow_cname(NAME)
    assert all(f"127.0.0.1:{port}" in failure.value.what for _, port in dead)


@pytest.fixture
def resolver(servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's first name server as this machine's resolver; it knows its own zones and ns1.lab.test."""
    host, port = pair(servers[0])
    ours = dns.resolver.Resolver(configure=False)
    ours.nameservers, ours.port = [host], port
    monkeypatch.setattr(dns.resolver, "default_resolver", ours)
    monkeypatch.setattr(our_dns, "PORT", port)


def test_the_servers_of_a_zone_are_every_address_of_its_ns_records(servers, resolver: None):
    found = our_dns.NameServers().for_zone("example.test")
    assert {(server.host, server.address) for server in found} == {
        ("ns1.lab.test", "127.0.0.1"),
        ("ns2.lab.test", "127.0.0.1"),
    }


def test_the_servers_of_a_name_are_found_without_asking_for_the_name_itself(
    cloud: Cloud, servers, resolver: None
):
    cloud.dns.add_record("example.test", rr="www", type="A", value="127.0.0.1")
    our_dns.NameServers().for_name("_acme-challenge.www.example.test")
    # A resolver that was told "no such name" would go on believing it for minutes.
    assert not [query for query in servers[0].queries if "_acme-challenge" in query.name]


def test_a_zone_that_does_not_exist_is_a_clear_failure(resolver: None):
    with pytest.raises(Failure, match=r"name servers of nowhere\.example"):
        our_dns.NameServers().for_zone("nowhere.example")
    with pytest.raises(Failure, match=r"zone of nowhere\.example"):
        our_dns.NameServers().for_name("_acme-challenge.nowhere.example")


def test_silence_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(our_dns, "QUERY_TIMEOUT", 0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = our_dns.NameServer("127.0.0.1", "127.0.0.1", silent.getsockname()[1])
        assert our_dns.txt_values(NAME, server) == "no answer"


def test_each_zone_is_looked_up_once(servers, resolver: None):
    finder = our_dns.NameServers()
    finder.for_zone("example.test")
    asked = len(servers[0].queries)
    assert finder.for_zone("example.test")
    assert len(servers[0].queries) == asked


def test_records_come_from_the_resolver_or_from_the_overriding_servers(
    cloud: Cloud, servers: tuple[NameServer, NameServer], monkeypatch: pytest.MonkeyPatch
):
    cloud.dns.add_record("example.test", rr="@", type="CAA", value='0 issue "ca.test"')
    cloud.dns.add_record("example.test", rr="alias", type="CNAME", value="example.test")
    resolver = dns.resolver.Resolver(configure=False)
    address, port = pair(servers[0])
    resolver.nameservers, resolver.port, resolver.lifetime = [address], port, 2.0
    monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
    for name_servers in (our_dns.NameServers(), our_dns.NameServers([pair(servers[0])])):
        for name in ("example.test", "alias.example.test"):
            assert [record.value for record in name_servers.records(name, "CAA")] == [b"ca.test"]
        assert name_servers.records("www.example.test", "CAA") == []  # no such name
        assert name_servers.records("dev.example.test", "CAA") == []  # no such record
        assert len(name_servers.records("example.test", "NS")) == 2
    # Overriding servers know their own zones only; that a resolver refuses is a failure.
    assert our_dns.NameServers([pair(servers[0])]).records("com", "CAA") == []
    with pytest.raises(Failure, match="CAA records of com"):
        our_dns.NameServers().records("com", "CAA")


def test_a_silent_server_is_a_failure_and_not_an_absence_of_records():
    with pytest.raises(Failure, match="CAA records of example.test: 127.0.0.1:1"):
        our_dns.NameServers([("127.0.0.1", 1)]).records("example.test", "CAA")


def test_whether_a_server_answers_is_told_of_udp_and_tcp_apart(servers: tuple[NameServer, NameServer]):
    (server,) = our_servers(servers[0])
    assert our_dns.unanswered("example.test", server) is None
    assert our_dns.unanswered("example.test", server, tcp=True) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        deaf = our_dns.NameServer("127.0.0.1", "127.0.0.1", udp.getsockname()[1])
        assert our_dns.unanswered("example.test", deaf) == "no answer"
        assert "refused" in (our_dns.unanswered("example.test", deaf, tcp=True) or "")
