"""The lab's TLS edges: which certificate a client sees, and when."""

import datetime
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab import pki
from lab.edge import Edge

TIMEOUT = 10


class Store:
    """The certificates of an emulated service, as a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, str]] = {}

    def certificate_for(self, name: str) -> tuple[str, str] | None:
        return self.held.get(name)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def edge(store: Store, tmp_path: Path) -> Iterator[Edge]:
    with Edge(store, "CDN", tmp_path) as edge:
        yield edge


def connect(edge: Edge, name: str | None, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
    connection = socket.create_connection((edge.host, edge.port), timeout=TIMEOUT)
    return context.wrap_socket(connection, server_hostname=name)


def served_name(edge: Edge, name: str | None) -> str:
    """The common name of the certificate that the edge shows."""
    with connect(edge, name) as connection:
        certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_the_name_in_the_handshake_chooses_the_certificate(store: Store, edge: Edge) -> None:
    store.held["www.example.test"] = pki.self_signed("first")
    store.held["static.example.test"] = pki.self_signed("second")

    assert served_name(edge, "www.example.test") == "first"
    assert served_name(edge, "static.example.test") == "second"
    assert served_name(edge, "WWW.example.test") == "first"


def test_a_name_without_certificate_and_no_name_at_all_get_the_default(store: Store, edge: Edge) -> None:
    store.held["www.example.test"] = pki.self_signed("first")

    assert served_name(edge, "other.example.test") == "lab default"
    assert served_name(edge, None) == "lab default"


def test_a_new_certificate_is_served_from_the_next_handshake_on(store: Store, edge: Edge) -> None:
    assert served_name(edge, "www.example.test") == "lab default"
    store.held["www.example.test"] = pki.self_signed("old")
    assert served_name(edge, "www.example.test") == "old"
    store.held["www.example.test"] = pki.self_signed("new")
    assert served_name(edge, "www.example.test") == "new"
    del store.held["www.example.test"]
    assert served_name(edge, "www.example.test") == "lab default"


def test_a_returning_client_sees_the_new_certificate_too(store: Store, edge: Edge) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(edge, "www.example.test", context) as connection:
        # With the answer the client has received whatever tickets there are.
        connection.sendall(b"GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n")
        while connection.recv(1000):
            pass
        session = connection.session
    store.held["www.example.test"] = pki.self_signed("new")

    plain = socket.create_connection((edge.host, edge.port), timeout=TIMEOUT)
    with context.wrap_socket(plain, server_hostname="www.example.test", session=session) as connection:
        assert not connection.session_reused


def test_a_key_that_does_not_match_leaves_the_default_and_the_others(store: Store, edge: Edge) -> None:
    store.held["broken.example.test"] = (pki.self_signed("one")[0], pki.self_signed("other")[1])
    store.held["www.example.test"] = pki.self_signed("first")

    assert served_name(edge, "broken.example.test") == "lab default"
    assert served_name(edge, "www.example.test") == "first"


def test_no_key_is_left_in_a_file(store: Store, edge: Edge, tmp_path: Path) -> None:
    store.held["www.example.test"] = pki.self_signed("first")
    store.held["broken.example.test"] = (pki.self_signed("one")[0], pki.self_signed("other")[1])

    served_name(edge, "www.example.test")
    served_name(edge, "broken.example.test")

    assert list(tmp_path.iterdir()) == []


class Issued(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ).decode()


def issue(name: str, issuer: Issued | None, authority: bool) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False),
            critical=True,
        )
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return Issued(builder.sign(signer, hashes.SHA256()), key)


def test_the_whole_chain_is_served_so_that_a_client_who_trusts_the_root_alone_verifies_it(
    store: Store, edge: Edge
) -> None:
    root = issue("a root", None, authority=True)
    intermediate = issue("an intermediate", root, authority=True)
    leaf = issue("www.example.test", intermediate, authority=False)
    trusting = ssl.create_default_context(cadata=root.pem)

    store.held["www.example.test"] = (leaf.pem + intermediate.pem, leaf.key_pem)
    with connect(edge, "www.example.test", trusting) as connection:
        assert connection.getpeercert()["serialNumber"] == f"{leaf.certificate.serial_number:X}".zfill(
            len(connection.getpeercert()["serialNumber"])
        )

    store.held["www.example.test"] = (leaf.pem, leaf.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(edge, "www.example.test", trusting)


def test_the_edge_speaks_http_1_1_and_answers_with_a_page(edge: Edge) -> None:
    with connect(edge, "www.example.test") as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        connection.sendall(b"GET / HTTP/1.1\r\nHost: www.example.test<script>\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        page = response.read().decode()

    assert response.status == 200
    assert "www.example.test&lt;script&gt;" in page
    assert "CDN" in page


def test_a_silent_client_holds_nobody_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.edge.HANDSHAKE_TIMEOUT", 3600)
    monkeypatch.setattr("lab.edge.REQUEST_TIMEOUT", 3600)
    with (
        Edge(store, "CDN", tmp_path) as edge,
        socket.create_connection((edge.host, edge.port), timeout=TIMEOUT),
        connect(edge, "www.example.test"),
    ):
        assert served_name(edge, "www.example.test") == "lab default"


def test_a_silent_client_is_let_go(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.edge.HANDSHAKE_TIMEOUT", 0.3)
    monkeypatch.setattr("lab.edge.REQUEST_TIMEOUT", 0.3)
    with (
        Edge(store, "CDN", tmp_path) as edge,
        socket.create_connection((edge.host, edge.port), timeout=TIMEOUT) as no_handshake,
        connect(edge, "www.example.test") as no_request,
    ):
        assert no_handshake.recv(1) == b""
        assert no_request.recv(1) == b""


def test_a_client_without_tls_disturbs_nobody(edge: Edge) -> None:
    with socket.create_connection((edge.host, edge.port), timeout=TIMEOUT) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n")
        plain.recv(100)

    assert served_name(edge, "www.example.test") == "lab default"


def test_stop_ends_every_connection_at_whatever_stage_and_frees_the_port(
    store: Store, tmp_path: Path
) -> None:
    edge = Edge(store, "CDN", tmp_path)
    edge.start()
    with (
        socket.create_connection((edge.host, edge.port), timeout=TIMEOUT) as no_handshake,
        connect(edge, "www.example.test") as no_request,
    ):
        edge.stop()
        assert no_handshake.recv(1) == b""
        assert no_request.recv(1) == b""

    with Edge(store, "CDN", tmp_path, port=edge.port) as again:
        assert served_name(again, "www.example.test") == "lab default"
