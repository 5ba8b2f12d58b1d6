"""Everything that reads what others wrote, on what they should not have written.

Whatever comes, it is used, or there is a Failure that says what and what to do; never another exception. FUZZ=100000
makes a long run of it.
"""

import base64
import contextlib
import gzip
import io
import json
import re
import socket
import ssl
import struct
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import dns.flags
import dns.message
import dns.rdata
import dns.rrset
import pytest
import requests
from canned_server import CannedServer
from conftest import ROOT, load_script
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from emulator_client import Emulator, common_parameters, make_tls_files, running_emulator, sign
from hostile import WORDS, damaged, damages, ends_well, fuzz, octets, texts
from hypothesis import strategies as st
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from common import acme, alibaba, config, install, names, renewal, show, x509
from common import dns as our_dns
from common.journal import Journal
from lab import pki
from lab.alibaba import AccessKey, Cloud, gateway

BASE = "https://ca.example"
NAMES = ["example.test", "*.example.test"]
KEY, ISSUER_KEY = x509.new_private_key("ec256"), x509.new_private_key("ec256")
SCRIPT = {
    number: load_script(number) for number in ("00", "02", "03", "04", "05", "06", "07", "08", "10", "11")
}
NOW = datetime.now(timezone.utc)


def certificate(subject: str, key: x509.PrivateKey, issuer: str, *domains: str) -> crypto_x509.Certificate:
    def name(text: str) -> crypto_x509.Name:
        return crypto_x509.Name([crypto_x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        crypto_x509.CertificateBuilder(name(issuer), name(subject), key.public_key())
        .serial_number(crypto_x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=80))
        .add_extension(
            crypto_x509.SubjectAlternativeName([crypto_x509.DNSName(d) for d in domains or NAMES]), False
        )
        .add_extension(
            crypto_x509.AuthorityKeyIdentifier.from_issuer_public_key(ISSUER_KEY.public_key()), False
        )
    )
    return builder.sign(ISSUER_KEY, hashes.SHA256())


CHAIN = [certificate("leaf", KEY, "issuer"), certificate("issuer", ISSUER_KEY, "issuer")]
CHAIN_PEM = x509.certificate_pem(CHAIN)
CSR_PEM = SCRIPT["02"].create_csr(KEY, NAMES)
CSR = x509.load_csr(CSR_PEM, Path("csr"))


# A CA: the real client, with an adapter of requests in place of the network.


class Line(BaseAdapter):
    """Answers each request as answer(path) says: status, headers, body."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes]] = lambda path: (200, {}, b"")

    def send(self, request: Any, **_: Any) -> requests.Response:  # type: ignore[override]
        status, headers, body = self.answer(request.url.removeprefix(BASE))
        response = requests.Response()
        response.status_code, response.url, response.request, response.reason = (
            status,
            request.url,
            request,
            "-",
        )
        given = {"Content-Type": "application/json", "Replay-Nonce": "n"} | headers
        response.headers = CaseInsensitiveDict(given)
        response.raw = Body(body)
        return response

    def close(self) -> None:
        """Nothing is open."""


class Body(io.BytesIO):
    """A body as urllib3 hands it out."""

    def read1(self, size: int | None = -1, decode_content: bool = True) -> bytes:
        return super().read1(-1 if size is None else size)


DIRECTORY = {
    "newNonce": f"{BASE}/nonce",
    "newAccount": f"{BASE}/account",
    "newOrder": f"{BASE}/new-order",
    "renewalInfo": f"{BASE}/renewal",
    "Xk3dw": "https://community.letsencrypt.org/t/adding-random-entries-to-the-directory/33417",
    "meta": {
        "termsOfService": f"{BASE}/terms",
        "website": BASE,
        "caaIdentities": ["ca.example"],
        "externalAccountRequired": False,
        "profiles": {"classic": f"{BASE}/profiles#classic", "shortlived": "six days"},
    },
}
PROBLEM = {
    "type": "urn:ietf:params:acme:error:rejectedIdentifier",
    "detail": "some names are not for us",
    "status": 403,
    "subproblems": [
        {
            "type": "urn:ietf:params:acme:error:caa",
            "detail": "CAA forbids",
            "identifier": {"type": "dns", "value": "b.example"},
        }
    ],
}
ORDER = {
    "status": "ready",
    "expires": "2026-12-01T00:00:00Z",
    "identifiers": [{"type": "dns", "value": name} for name in NAMES],
    "authorizations": [f"{BASE}/authz/1", f"{BASE}/authz/2"],
    "finalize": f"{BASE}/finalize",
    "certificate": f"{BASE}/certificate",
    "error": PROBLEM,
}
ORDERS = [ORDER | {"status": status} for status in ("pending", "ready", "valid", "invalid")]
CHALLENGE = {
    "type": "dns-01",
    "url": f"{BASE}/challenge",
    "status": "invalid",
    "token": "dG9rZW4",
    "error": PROBLEM,
}
AUTHORIZATIONS = [
    {
        "status": status,
        "expires": "2026-12-01T00:00:00Z",
        "identifier": {"type": "dns", "value": "example.test"},
        "challenges": [{"type": "http-01", "url": f"{BASE}/x", "token": "eA"}, CHALLENGE],
        "wildcard": True,
    }
    for status in ("pending", "valid", "invalid")
]
ADVICE = {
    "suggestedWindow": {"start": "2026-11-01T00:00:00Z", "end": "2026-11-03T12:00:00.123456789Z"},
    "explanationURL": f"{BASE}/why",
}
DATE = "Tue, 24 Nov 2026 11:46:48 GMT"

latin1 = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30)
header_text = st.one_of(
    latin1,
    octets(DATE.encode(), b"120", b"Tue, 24 Nov 2026 11:46:48 +0100", b"9" * 50).map(
        lambda b: b.decode("latin-1")
    ),
    octets(f'<{BASE}/dir>;rel="index", <{BASE}/alternate>; rel="alternate"; x'.encode()).map(
        lambda b: b.decode("latin-1").replace("\n", "")
    ),
    st.sampled_from(
        [f"{BASE}/made/1", "https://[", "https://\x80/", "/relative", "http://ca.example/", "%zz", "0", "-5"]
    ),
)
headers = st.dictionaries(
    st.sampled_from(["Location", "Link", "Retry-After", "Replay-Nonce", "Content-Type", "Content-Encoding"]),
    header_text | st.sampled_from(["application/problem+json", "text/plain", "gzip"]),
    max_size=3,
)
statuses = st.sampled_from([200, 200, 200, 201, 204, 302, 308, 400, 403, 404, 429, 500, 503, 999])


@pytest.fixture(scope="module", autouse=True)
def no_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acme.time, "sleep", lambda seconds: None)
        yield


@pytest.fixture(scope="module")
def line() -> Line:
    return Line()


class CaaRecords:
    """In place of name servers: one record, that a CA may issue."""

    def records(self, name: str, kind: str) -> list[Any]:
        return [dns.rdata.from_text("IN", "CAA", '0 issue "ca.example"')]


def connect(line: Line) -> acme.Client:
    """A client at the other end of the line, and of no other."""
    with pytest.MonkeyPatch.context() as patch:
        # The directory is asked for before anybody could mount an adapter.
        patch.setattr(requests.Session, "get_adapter", lambda session, url: line)
        client = acme.Client(f"{BASE}/dir", KEY, f"{BASE}/account/1", brief=False)
    client._session.mount("https://", line)
    return client


@pytest.fixture(scope="module")
def ca(line: Line) -> acme.Client:
    line.answer = lambda path: (200, {}, json.dumps(DIRECTORY).encode())
    with ends_well():
        return connect(line)


@fuzz(statuses, headers, texts(ORDER, PROBLEM, *AUTHORIZATIONS[:1], ADVICE))
def test_any_answer_of_a_ca(line: Line, ca: acme.Client, status: int, more: dict[str, str], body: bytes):
    line.answer = lambda path: (status, more, body)
    with ends_well():
        answer = ca.post(f"{BASE}/order", {})
        assert all(isinstance(url, str) for url in answer.links("alternate"))
        assert answer.retry_after is None or 0 <= answer.retry_after <= acme.A_YEAR
        answer.object(status=str)
        show.result(answer.location)


@fuzz(header_text)
def test_any_retry_after_is_seconds_or_nothing(header: str):
    seconds = acme.retry_after(header)
    assert seconds is None or 0 <= seconds <= acme.A_YEAR
    assert seconds is None or acme.duration(seconds)


@fuzz(texts(DIRECTORY), st.sampled_from([None, "shortlived", "x"]))
def test_any_directory(line: Line, body: bytes, profile: str | None):
    line.answer = lambda path: (200, {}, body)
    with ends_well():
        ca = connect(line)
        SCRIPT["03"].show_directory(ca)
        SCRIPT["04"].check_profile(ca, profile)
        settings = config.Settings(Path("acme.ini"), acme=config.Acme(profile=profile))
        list(SCRIPT["00"].check_directory(settings, ca.directory))
        SCRIPT["00"].check_caa(CaaRecords(), "example.test", ca.directory, None)
        SCRIPT["03"].check_terms(ca, False, Path("acme.ini"))


@fuzz(texts(*ORDERS), st.lists(texts(*AUTHORIZATIONS), min_size=1, max_size=2))
def test_any_order_and_any_authorization(
    line: Line, ca: acme.Client, order: bytes, authorizations: list[bytes]
):
    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/authz/"):
            return 200, {}, authorizations[int(path[-1] == "2") % len(authorizations)]
        if path == "/certificate":
            return 200, {"Content-Type": "application/pem-certificate-chain"}, CHAIN_PEM
        return 201, {"Location": f"{BASE}/order/1"}, order

    line.answer = answer
    saved = {"order_url": f"{BASE}/order/1"}
    with ends_well():
        SCRIPT["04"].live_order(ca, saved, NAMES)
    with ends_well():
        made = SCRIPT["04"].new_order(ca, NAMES, replaces="x").object(status=str, authorizations=list)
        for challenge in SCRIPT["05"].pending_challenges(ca, made["authorizations"]):
            # What leads on to the DNS can be asked there.
            assert names.dns_name(challenge.domain) and dns.message.make_query(challenge.name, "TXT")
            SCRIPT["05"].respond(ca, challenge)
    with ends_well():
        raise SCRIPT["05"].why_invalid(ca, ca.post_as_get(f"{BASE}/order/1").object(status=str))
    with ends_well(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCRIPT["06"], "ISSUE_TIMEOUT", 0)
        issued = SCRIPT["06"].issued_order(ca, f"{BASE}/order/1", CSR)
        SCRIPT["06"].download_chain(ca, issued["certificate"], "another")


@fuzz(st.sampled_from(["application/json", "application/pem-certificate-chain"]), octets(CHAIN_PEM), headers)
def test_any_certificate_that_is_downloaded(
    line: Line, ca: acme.Client, kind: str, body: bytes, more: dict[str, str]
):
    line.answer = lambda path: (200, more | {"Content-Type": kind}, body)
    with ends_well():
        chain = SCRIPT["06"].download_chain(ca, f"{BASE}/certificate", "another")
        x509.check_chain(chain)
        x509.check_certificate(chain[0], KEY, NAMES)


@fuzz(texts(ADVICE), headers)
def test_any_advice_when_to_renew(line: Line, ca: acme.Client, body: bytes, more: dict[str, str]):
    line.answer = lambda path: (200, more, body)
    record = renewal.Record()
    with ends_well():
        answer = ca.get(f"{BASE}/renewal/x")
        start, end = SCRIPT["11"].suggested_window(answer)
        record.heard("01", start, end, answer.retry_after, NOW)
        assert start <= datetime.fromisoformat(record.renew_at) <= end
        assert record.due_at(NOW, NOW + timedelta(days=90)) <= NOW + timedelta(days=81)
        assert not record.may_ask("01", NOW)


@fuzz(
    st.sampled_from([f"{BASE}/order/1", "https://127.0.0.1:1/order?a=b#c", "https://[::1]:1/"]),
    st.text(max_size=8),
    damages,
)
def test_any_address_that_a_ca_gives(url: str, more: str, hurt: list[tuple[int, int]]):
    letters = list(url)
    for place, octet in hurt:
        letters[place % len(letters)] = chr(octet)
    # Not by the line above: here the real adapter takes the address apart. Nothing listens there.
    with pytest.MonkeyPatch.context() as patch, ends_well():
        patch.setattr(acme.Client, "get", lambda *_: acme.Answer(BASE, 200, "", {}, DIRECTORY))
        ca = acme.Client(f"{BASE}/dir", KEY)
        ca._nonces.append("n")
        SCRIPT["04"].live_order(ca, {"order_url": "".join(letters) + more}, NAMES)


# Files with keys and certificates.


@fuzz(octets(CHAIN_PEM, CHAIN_PEM[: len(CHAIN_PEM) // 2], CHAIN_PEM * 2, CSR_PEM))
def test_any_chain(pem: bytes):
    with ends_well():
        chain = x509.split_chain(pem, "a test")
        assert x509.serial_hex(chain[0]) and x509.issuer_name(chain[-1])
        assert x509.split_chain(x509.certificate_pem(chain), "a test") == chain
        install.KeyPair(chain, "", "").name_for("example.test")
        with contextlib.suppress(ValueError):  # which names no issuer's key
            x509.certificate_id(chain[0])
        if x509.public_key_der(chain[0]) == x509.public_key_der(KEY):
            SCRIPT["10"].create_pfx(KEY, chain, "x", "2022")
        assert SCRIPT["10"].powershell(Path("x.pfx"), chain[0])
        x509.check_chain(chain)
        x509.check_certificate(chain[0], KEY, NAMES)


DERS = [c.public_bytes(serialization.Encoding.DER) for c in CHAIN]


@fuzz(octets(*DERS))
def test_any_damaged_certificate(der: bytes):
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    with ends_well():
        chain = [*x509.split_chain(pem, "a test"), CHAIN[1]]
        assert x509.issuer_name(chain[0]) and isinstance(x509.covers(chain[0], "example.test"), bool)
        x509.check_chain(chain)
        x509.check_certificate(chain[0], KEY, NAMES)


PRIVATE_KEYS = [
    pem.encode() if isinstance(pem, str) else pem
    for key in (KEY, x509.new_private_key("ec384"), x509.new_private_key("rsa2048"))
    for pem in (x509.private_key_pem(key), x509.traditional_private_key_pem(key))
]


@fuzz(octets(*PRIVATE_KEYS, CSR_PEM, CHAIN_PEM))
def test_any_key_file(pem: bytes):
    with ends_well():
        key = x509.load_private_key(pem, Path("account.key"))
        assert x509.public_key_der(key) and acme.jws.thumbprint(key)


CSR_DER = CSR.public_bytes(serialization.Encoding.DER)


@fuzz(octets(CSR_DER) | octets(CSR_PEM))
def test_any_signing_request(content: bytes):
    text = base64.encodebytes(content)
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"-----END CERTIFICATE REQUEST-----\n"
    with ends_well():
        csr = x509.load_csr(pem if content.startswith(b"0") else content, Path("certificate.csr"))
        assert isinstance(x509.dns_names(csr), list)


# The DNS.


class NameServer(threading.Thread):
    """Answers whoever asks, by UDP and TCP, with the octets that it is given; the id is the question's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.answer, self.keep_id = b"", True
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        threading.Thread(target=self.run_tcp, daemon=True).start()

    def message(self, query: bytes) -> bytes:
        return (query[:2] if self.keep_id else b"") + self.answer[2 if self.keep_id else 0 :]

    def run(self) -> None:
        while True:
            query, address = self.udp.recvfrom(4096)
            self.udp.sendto(self.message(query), address)

    def run_tcp(self) -> None:
        while True:
            connection, _ = self.tcp.accept()
            with connection:
                answer = self.message(connection.recv(4096)[2:])
                connection.sendall(struct.pack("!H", len(answer)) + answer)


@pytest.fixture(scope="module")
def name_server() -> NameServer:
    server = NameServer()
    server.start()
    return server


CHALLENGED = "_acme-challenge.example.test"


def dns_answer(kind: str, *records: str, flags: str = "QR AA") -> bytes:
    message = dns.message.make_query(CHALLENGED, kind, flags=dns.flags.from_text(flags), use_edns=0)
    message.answer.append(dns.rrset.from_text(f"{CHALLENGED}.", 60, "IN", kind, *records))
    return message.to_wire()


DNS_ANSWERS = {
    "TXT": [
        dns_answer("TXT", '"one"', '"two" "parts"', '"\\000\\255\\027[2J"'),
        dns_answer("TXT", '"one"', flags="QR TC"),
    ],
    "CNAME": [dns_answer("CNAME", "elsewhere.example."), dns_answer("CNAME", "a\\.b\\000\\200.example.")],
    "CAA": [dns_answer("CAA", '0 issue "ca.example; validationmethods=dns-01"')],
}


@fuzz(
    st.sampled_from([(kind, wire) for kind, wires in DNS_ANSWERS.items() for wire in wires]),
    damages,
    st.booleans(),
)
def test_any_dns_answer(
    name_server: NameServer, chosen: tuple[str, bytes], hurt: list[tuple[int, int]], keep: bool
):
    kind, wire = chosen
    name_server.answer, name_server.keep_id = damaged(wire, hurt), keep or not hurt
    servers = our_dns.NameServers([("127.0.0.1", name_server.port)])
    with pytest.MonkeyPatch.context() as patch, ends_well():
        patch.setattr(our_dns, "QUERY_TIMEOUT", 0.05)
        if kind == "TXT":
            our_dns.wait_until_visible({CHALLENGED: {"one"}}, {CHALLENGED: servers.for_name(CHALLENGED)}, 0)
        elif kind == "CNAME":
            servers.follow_cname(CHALLENGED)
        else:
            SCRIPT["00"].check_caa(servers, CHALLENGED, {"meta": {"caaIdentities": ["ca.example"]}}, None)


# Alibaba Cloud, with the real SDK.


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CannedServer, alibaba.Client]]:
    with CannedServer(tmp_path_factory.mktemp("cloud")) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(alibaba, "TRIES", 1)
        key = alibaba.Credentials("an-access-key-id", "made for a test only")
        endpoint = server.base.removeprefix("https://")
        yield server, alibaba.Client(key, "cn-hangzhou", endpoint, server.ca_bundle)


ERROR = {
    "RequestId": "R-1",
    "HostId": "h",
    "Code": "SignatureDoesNotMatch",
    "Message": "server string to sign is:GET&x",
}
DOMAINS = {
    "TotalCount": 1,
    "PageSize": 100,
    "Domains": {
        "Domain": [
            {
                "DomainName": "bücher.test",
                "PunyCode": "xn--bcher-kva.test",
                "DnsServers": {"DnsServer": ["ns1"]},
            }
        ]
    },
}
RECORDS = {
    "TotalCount": 1,
    "DomainRecords": {"Record": [{"RR": "a", "Value": "v", "RecordId": "7", "Type": "TXT"}]},
}
CERTIFICATE_INFO = {
    "CertInfos": {
        "CertInfo": [
            {
                "ServerCertificateStatus": "on",
                "ServerCertificate": CHAIN_PEM.decode(),
                "DomainCnameStatus": "ok",
                "CertName": "x",
            }
        ]
    }
}
API_DOMAIN = {
    "DomainBindingStatus": "BINDING",
    "DomainLegalStatus": "NORMAL",
    "DomainCNAMEStatus": "RESOLVED",
    "DomainRemark": "",
    "CertificateBody": CHAIN_PEM.decode(),
}
IDENTITY = {"IdentityType": "RAMUser", "Arn": "acs:ram::1:user/x", "AccountId": "1"}
PAIR = install.KeyPair(CHAIN, CHAIN_PEM.decode(), "")
CALLS: dict[str, tuple[Any, list[Callable[[alibaba.Client], Any]]]] = {
    "domains": (DOMAINS, [SCRIPT["05"].my_zones, SCRIPT["00"].my_domains]),
    "record": (
        {"RecordId": "7"},
        [lambda cloud: SCRIPT["05"].add_txt_record(cloud, "example.test", "a", "v")],
    ),
    "records": (
        RECORDS,
        [
            lambda cloud: SCRIPT["05"].delete_txt_record(
                cloud, SCRIPT["05"].find_txt_record(cloud, "example.test", "a", "v") or "7"
            )
        ],
    ),
    "CDN": (
        CERTIFICATE_INFO,
        [
            lambda cloud: SCRIPT["07"].shows_certificate(cloud, "www.example.test", PAIR),
            lambda cloud: SCRIPT["00"].check_cdn_domain(cloud, "www.example.test"),
        ],
    ),
    "API Gateway": (
        API_DOMAIN,
        [
            lambda cloud: SCRIPT["08"].shows_certificate(cloud, "group", "api.example.test", PAIR),
            lambda cloud: SCRIPT["00"].check_api_domain(cloud, "group", "api.example.test"),
        ],
    ),
    "identity": (
        IDENTITY,
        [
            lambda cloud: list(
                SCRIPT["00"].check_identity(cloud.call(SCRIPT["00"].GetCallerIdentityRequest, {}), [])
            )
        ],
    ),
}


@fuzz(
    st.sampled_from(sorted(CALLS)).flatmap(
        lambda name: st.tuples(st.just(name), texts(CALLS[name][0], ERROR))
    ),
    st.sampled_from([200, 200, 200, 302, 400, 403, 404, 500, 503]),
    headers,
    examples=150,
)
def test_any_answer_of_alibaba_cloud(
    cloud: tuple[CannedServer, alibaba.Client], chosen: tuple[str, bytes], status: int, more: dict[str, str]
):
    server, client = cloud
    more = {name: value.strip() for name, value in more.items() if name != "Content-Encoding"}
    server.answer = lambda path, body: (status, more, chosen[1])
    for call in CALLS[chosen[0]][1]:
        with ends_well():
            call(client)


# What stands in files.

EXAMPLE = (ROOT / "acme.example.ini").read_text(encoding="utf-8").replace("\n# ", "\n")
SETTINGS = [line for line in EXAMPLE.splitlines() if " = " in line or line.startswith("[")]
strange_value = st.one_of(
    st.sampled_from(
        [
            "~no-such-user/x",
            "~",
            "a\x00b",
            "\ud800",
            "%(x)s",
            "${x}",
            "yes",
            "no",
            "1",
            "::1",
            "[::1]:53",
            "1:1:1",
        ]
    ),
    st.text(max_size=20),
)


@fuzz(
    st.lists(st.tuples(st.integers(0, 1000), strange_value), max_size=2),
    st.lists(st.sampled_from(SETTINGS), max_size=2),
    damages,
)
def test_any_settings(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, str]],
    more: list[str],
    hurt: list[tuple[int, int]],
):
    lines = SETTINGS + more
    for number, text in changes:
        key, equals, _ = lines[number % len(lines)].partition(" = ")
        lines[number % len(lines)] = f"{key}{equals or ' '}{text}"
    file = tmp_path_factory.getbasetemp() / "acme.ini"
    file.write_bytes(damaged("\n".join(lines).encode("utf-8", "surrogatepass"), hurt))
    with ends_well():
        settings = config.load(file)
        for section, key in (("acme", "ca_bundle"), ("acme", "eab_hmac_key_file"), ("iis", "password_file")):
            path = getattr(getattr(settings, section), key)
            if path:
                path.exists()
        assert settings.state.exists("account.json") is False
        SCRIPT["10"].read_password(settings.iis.password_file or file)


ACCOUNT = {"account_url": f"{BASE}/account/1", "directory": config.STAGING, "contact": [], "status": "valid"}
JOURNAL = {
    "entries": [
        {"zone": "example.test", "rr": "a", "value": "v", "record_id": "7"},
        {"zone": "b", "rr": "c", "value": "d"},
    ]
}
RENEWAL = {
    "serial": "01",
    "window": ["2026-11-01T00:00:00+00:00", "2026-11-03T00:00:00+00:00"],
    "renew_at": "2026-11-02T00:00:00+00:00",
    "ask_again_at": "2026-11-02T00:00:00+00:00",
    "failures": 2,
    "try_again_at": "2026-11-02T00:00:00+00:00",
    "last_failure": "no",
    "installed": {"07_install_cdn": "01 www.example.test"},
}


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> config.Settings:
    folder = tmp_path_factory.mktemp("state")
    (folder / "acme.ini").write_text("[cdn]\ndomains = www.example.test\n")
    return config.load(folder / "acme.ini")


@fuzz(
    texts(ACCOUNT),
    texts({"order_url": f"{BASE}/order/1", "order": ORDER}),
    texts(JOURNAL),
    texts(RENEWAL),
    texts({"serial": "01", "reason": "x"}),
)
def test_any_state_file(
    settings_file: config.Settings, line: Line, ca: acme.Client,
    account: bytes, order: bytes, journal: bytes, record: bytes, revoked: bytes,
):  # fmt: skip
    line.answer = lambda path: (200, {}, json.dumps(ORDER).encode())
    state = settings_file.state
    state.folder.mkdir(exist_ok=True)
    files = {
        "account.json": account,
        "order.json": order,
        "dns_records.json": journal,
        "renewal.json": record,
        "revoked.json": revoked,
    }
    for name, content in files.items():
        state.path(name).write_bytes(content)
    with ends_well():
        known = acme.load_account(settings_file)
        ca.post_as_get(known["account_url"])
        show.result(known["account_url"])
    with ends_well():
        saved = state.read_json("order.json", "04_new_order.py", order_url=str)
        SCRIPT["04"].live_order(ca, saved, NAMES)
        show.result(saved["order_url"])
    with ends_well():
        journal = Journal(state, "dns_records.json", "05_dns_challenge.py", "zone", "rr", "value")
        for entry in journal.entries():
            assert all(isinstance(entry[name], str) for name in ("zone", "rr", "value"))
            assert isinstance(entry.get("record_id", ""), str)
        journal.begin(zone="z", rr="r", value="v")
    with ends_well():
        remembered = renewal.load(state)
        remembered.may_ask("01", NOW)
        remembered.due_at(NOW, NOW + timedelta(days=90))
        remembered.pausing_until(NOW)
        SCRIPT["11"].missing_installs(settings_file, remembered)
        remembered.failed("no", 1.0, NOW)
        remembered.installed["07_install_cdn"] = "x"
        assert json.dumps(asdict(remembered))
    with ends_well():
        SCRIPT["11"].is_revoked(state, CHAIN[0])


CREDENTIALS = b"""[default]
type = access_key
access_key_id = an-id
access_key_secret = made-for-a-test

[lab]
type = access_key
access_key_id = another-id
access_key_secret = made-for-a-test-too
"""


@fuzz(octets(CREDENTIALS), st.sampled_from(["default", "lab", "none"]))
def test_any_credentials_file(tmp_path_factory: pytest.TempPathFactory, content: bytes, profile: str):
    file = tmp_path_factory.getbasetemp() / "credentials.ini"
    file.write_bytes(content)
    chosen = config.Alibaba(profile=profile, credentials_file=file)
    with ends_well():
        try:
            found = alibaba.credentials(config.Settings(Path("acme.ini"), alibaba=chosen))
            assert found.access_key_id and found.access_key_secret.isascii()
        finally:
            show._Output.secrets = ()


# What comes over a real line: not even HTTP.

HTTP_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nReplay-Nonce: n\r\nContent-Encoding: identity\r\n"
    b"Link: <https://ca.example/dir>;rel=index\r\nSet-Cookie: a=b\r\nConnection: close\r\n"
)
HTTP_ANSWERS = [
    HTTP_ANSWER + b'Content-Length: 19\r\n\r\n{"status": "valid"}',
    HTTP_ANSWER + b'Transfer-Encoding: chunked\r\n\r\n13\r\n{"status": "valid"}\r\n0\r\n\r\n',
    HTTP_ANSWER.replace(b"identity", b"gzip") + b"\r\n" + gzip.compress(b'{"status": "valid"}'),
    HTTP_ANSWER.replace(b"200 OK", b"302 Found") + b"Location: https://[\r\nContent-Length: 0\r\n\r\n",
]


class RawServer(threading.Thread):
    """Reads a request over TLS, whatever it is, and answers with the octets that it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        files = pki.write_server_files(folder)
        self.ca_bundle, self.answer = str(files.root), b""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(files.certificate, files.key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(65536)
                tls.sendall(self.answer)


@pytest.fixture(scope="module")
def raw_server(tmp_path_factory: pytest.TempPathFactory) -> RawServer:
    server = RawServer(tmp_path_factory.mktemp("raw"))
    server.start()
    return server


@fuzz(octets(*HTTP_ANSWERS), examples=60)
def test_any_octets_from_a_ca_and_from_alibaba_cloud(raw_server: RawServer, content: bytes):
    raw_server.answer = content
    endpoint = f"127.0.0.1:{raw_server.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acme, "TIMEOUT", (5, 5))
        patch.setattr(alibaba, "TRIES", 1)
        with ends_well():
            acme.Client(f"https://{endpoint}/dir", KEY, None, raw_server.ca_bundle)
        with ends_well():
            key = alibaba.Credentials("an-access-key-id", "made for a test only")
            alibaba.Client(key, "cn-hangzhou", endpoint, raw_server.ca_bundle).call(
                SCRIPT["00"].GetCallerIdentityRequest, {}
            )


# The emulator, which is attacked too.

ACTIONS = sorted((product.VERSION, action) for product in Cloud().products for action in product.actions)
GOOD_VALUES = [
    *(
        "example.test",
        "www.example.test",
        ".example.test",
        "api.example.test",
        "@",
        "_acme-challenge",
        "TXT",
        "CNAME",
    ),
    *(
        "1",
        "100",
        "600",
        "default",
        "on",
        "upload",
        "acme_01",
        "cn-hangzhou",
        CHAIN_PEM.decode(),
        PRIVATE_KEYS[1].decode(),
    ),
]
PARAMETERS = """
    DomainName RR Type Value TTL Line Priority RecordId PageNumber PageSize KeyWord RRKeyWord TypeKeyWord
    ValueKeyWord InputString SubDomain SSLProtocol CertType CertName SSLPub SSLPri CertId GroupId GroupName RegionId
    CertificateName CertificateBody CertificatePrivateKey CertificateId Format
"""
parameter_values = st.sampled_from(
    [*GOOD_VALUES, *(word for word in WORDS if "\ud800" not in word)]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def ram() -> tuple[Cloud, AccessKey]:
    cloud = Cloud()
    cloud.dns.add_zone("example.test")
    cloud.cdn.add_domain("www.example.test")
    return cloud, cloud.ram.add_access_key()


def answered(cloud: Cloud, method: str, parameters: dict[str, str]) -> Any:
    query = urlencode(parameters, quote_via=quote)
    answer = gateway.answer(
        cloud, method, "" if method == "POST" else query, query.encode() * (method == "POST"), ""
    )
    parse = json.loads if answer.content_type.startswith("application/json") else ElementTree.fromstring
    parse(answer.body.decode())
    return answer


@fuzz(
    st.sampled_from(ACTIONS),
    st.sampled_from(["GET", "POST"]),
    st.dictionaries(
        st.sampled_from(PARAMETERS.split()) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        parameter_values,
        max_size=8,
    ),
)
def test_the_emulator_answers_any_signed_call(
    ram: tuple[Cloud, AccessKey], called: tuple[str, str], method: str, more: dict[str, str]
):
    cloud, key = ram
    version, action = called
    parameters = common_parameters(key, action) | more | {"Version": version}
    parameters["Signature"] = sign(
        method, {n: v for n, v in parameters.items() if n != "Signature"}, key.access_key_secret
    )
    answer = answered(cloud, method, parameters)
    assert answer.status in (200, 400, 403, 404), answer
    cloud.calls.clear()


@fuzz(
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["signature", "added", "changed", "removed", "method"]),
    st.integers(0, 20),
    parameter_values,
    st.sampled_from(PARAMETERS.split()),
)
def test_the_emulator_answers_no_call_that_was_changed_after_it_was_signed(
    ram: tuple[Cloud, AccessKey], method: str, change: str, number: int, value: str, name: str
):
    cloud, key = ram
    signed = common_parameters(key, "DescribeDomains") | {"KeyWord": "x", "PageSize": "20"}
    signed["Signature"] = sign(method, signed, key.access_key_secret)
    sent, chosen = dict(signed), sorted(signed)[number % len(signed)]
    if change == "method":
        method = "GET" if method == "POST" else "POST"
    elif change == "removed":
        del sent[chosen]
    else:
        sent[{"signature": "Signature", "added": name, "changed": chosen}[change]] = value
    if sent != signed or change == "method":
        assert 400 <= answered(cloud, method, sent).status < 500
    cloud.calls.clear()


def signed_request(key: AccessKey) -> bytes:
    parameters = common_parameters(key, "DescribeDomains")
    body = urlencode(parameters | {"Signature": sign("POST", parameters, key.access_key_secret)})
    head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}".encode()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    files = make_tls_files(tmp_path_factory.mktemp("emulator"))
    with pytest.MonkeyPatch.context() as patch, running_emulator(*files) as running:
        # Where something is cut off, more is waited for.
        patch.setattr(gateway.Handler, "timeout", 0.05)
        yield running


@fuzz(damages, examples=100)
def test_the_emulator_survives_any_octets(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, hurt: list[tuple[int, int]]
):
    context = ssl.create_default_context(cafile=emulator.ca_file)
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", emulator.gateway.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        contextlib.suppress(ConnectionError, ssl.SSLEOFError),
    ):
        connection.sendall(damaged(signed_request(emulator.key), hurt))
        while chunk := connection.recv(65536):
            answer += chunk
    assert not answer or re.match(rb"HTTP/1\.[01] (200|4\d\d|505) ", answer), answer
    assert caplog.records == []
    emulator.cloud.calls.clear()
