"""Whom the scripts trust: the CA, the cloud and the edges must prove who they are, and nothing turns that off."""

import contextlib
import dataclasses
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import certifi
import pytest
from aliyunsdkalidns.request.v20150109.DescribeDomainsRequest import DescribeDomainsRequest
from canned_server import CannedServer
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from common import acme, alibaba, config, x509
from common.failure import Failure
from lab.pki import ServerFiles

KEY, ROOT_KEY = x509.new_private_key("ec256"), x509.new_private_key("ec256")
NAMES = ("127.0.0.1", "www.example.test", "ca.example")
GOOD = (-1, 30)  # the days from which, and to which, a certificate is valid


USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def build(
    subject: str,
    key: x509.PrivateKey,
    signer: x509.PrivateKey,
    days: tuple[int, int],
    names: tuple[str, ...],
    ca: bool,
) -> crypto_x509.Certificate:
    def name(text: str) -> crypto_x509.Name:
        return crypto_x509.Name([crypto_x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(timezone.utc)
    builder = (
        crypto_x509.CertificateBuilder(name("root"), name(subject), key.public_key())
        .serial_number(crypto_x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(crypto_x509.BasicConstraints(ca, None), critical=True)
        .add_extension(crypto_x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            crypto_x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if ca:
        # OpenSSL's strict mode, which Python 3.13 asks for, wants it of a CA.
        usage = dict.fromkeys(USAGES, False) | {"key_cert_sign": True}
        builder = builder.add_extension(crypto_x509.KeyUsage(**usage), critical=True)
    if names:
        general = [
            crypto_x509.IPAddress(ip_address(n)) if n[0].isdecimal() else crypto_x509.DNSName(n)
            for n in names
        ]
        builder = builder.add_extension(crypto_x509.SubjectAlternativeName(general), critical=False)
    return builder.sign(signer, hashes.SHA256())


def write_files(
    folder: Path,
    leaf_days: tuple[int, int] = GOOD,
    root_days: tuple[int, int] = GOOD,
    names: tuple[str, ...] = NAMES,
    signer: x509.PrivateKey = ROOT_KEY,
    ca: bool = True,
) -> ServerFiles:
    """A root, and a certificate and key for a server."""
    files = ServerFiles(folder / "root.pem", folder / "server.pem", folder / "server.key")
    files.root.write_bytes(x509.certificate_pem([build("root", ROOT_KEY, ROOT_KEY, root_days, (), ca)]))
    files.certificate.write_bytes(
        x509.certificate_pem([build("server", KEY, signer, leaf_days, names, False)])
    )
    files.key.write_bytes(x509.private_key_pem(KEY))
    return files


IMPOSTORS: dict[str, tuple[dict[str, object], str]] = {
    "signed by another root": (
        {"signer": x509.new_private_key("ec256")},
        "certificate verify failed|signature",
    ),
    "self-signed": ({"signer": KEY}, "certificate verify failed|signature|issuer"),
    "for another host": ({"names": ("other.test", "192.0.2.1")}, "mismatch|doesn't match|not valid for"),
    "for no host but in its subject": ({"names": ()}, "mismatch|doesn't match|not valid for|no appropriate"),
    "expired": ({"leaf_days": (-30, -1)}, "expired"),
    "not yet valid": ({"leaf_days": (1, 30)}, "not yet valid"),
    "under an expired root": ({"root_days": (-30, -1)}, "expired"),
    "under a root that is no CA": ({"ca": False}, "CA"),
}


@pytest.fixture
def server_with(tmp_path: Path) -> Iterator[Callable[..., CannedServer]]:
    """Make a server of a CA and of the cloud; server_with(name=value…) as of write_files()."""
    with contextlib.ExitStack() as running:

        def make(**facts: object) -> CannedServer:
            files = write_files(tmp_path, **facts)  # type: ignore[arg-type]
            return running.enter_context(CannedServer(tmp_path, files=files))

        yield make


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and no roots but those that a test names."""
    monkeypatch.setattr(acme.time, "sleep", lambda seconds: None)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


def ask_ca(address: str, bundle: str | None) -> object:
    return acme.Client(f"https://{address}/dir", KEY, None, bundle).directory


def ask_cloud(address: str, bundle: str | None) -> object:
    key = alibaba.Credentials("an-access-key-id", "made for a test only")
    return alibaba.Client(key, "cn-hangzhou", address, bundle).call(DescribeDomainsRequest, {})


ASK = {"CA": ask_ca, "cloud": ask_cloud}


@pytest.mark.parametrize("whom", ASK)
def test_a_server_that_proves_who_it_is_is_asked(server_with: Callable[..., CannedServer], whom: str):
    server = server_with()
    assert ASK[whom](server.base.removeprefix("https://"), server.ca_bundle) is not None
    assert server.requests


# The SDK says so where it falls back to the subject's name.
@pytest.mark.filterwarnings("ignore:Certificate for")
@pytest.mark.parametrize("impostor", IMPOSTORS)
@pytest.mark.parametrize("whom", ASK)
def test_an_impostor_is_told_nothing(server_with: Callable[..., CannedServer], whom: str, impostor: str):
    facts, reason = IMPOSTORS[impostor]
    server = server_with(**facts)
    with pytest.raises(Failure, match=reason) as refusal:
        ASK[whom](server.base.removeprefix("https://"), server.ca_bundle)
    assert re.search("TLS|NoTls", refusal.value.what)
    assert server.requests == []


def problem_at_edge(server: CannedServer) -> str | None:
    chain = [
        *x509.split_chain(server.files.certificate.read_bytes(), "a test"),
        *x509.split_chain(server.files.root.read_bytes(), "a test"),
    ]
    return x509.served_chain_problem("www.example.test", ("127.0.0.1", server.server.server_port), chain)


def test_an_edge_with_a_certificate_that_browsers_take_has_no_problem(
    server_with: Callable[..., CannedServer],
):
    assert problem_at_edge(server_with()) is None


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_an_edge_with_a_certificate_that_no_browser_takes_has_one(
    server_with: Callable[..., CannedServer], impostor: str
):
    facts, reason = IMPOSTORS[impostor]
    problem = problem_at_edge(server_with(**facts))
    assert problem and (re.search(reason, problem, re.IGNORECASE) or "unable to get" in problem), problem


# What a person may set.

KEYS = [
    (section.name, key.name)
    for section in dataclasses.fields(config.Settings)
    if section.name != "file"
    for key in dataclasses.fields(section.type)  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section}.{key}" for section, key in KEYS])
def test_no_setting_turns_verification_off(
    server_with: Callable[..., CannedServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    key: str,
):
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "an-access-key-id")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "made for a test only")
    monkeypatch.setattr(alibaba, "TRIES", 1)
    server = server_with()
    address = server.base.removeprefix("https://")
    for value in ("no", "off", "false", "0", "none", "insecure"):
        texts = {"acme": {"directory": f"{server.base}/dir"}, "alibaba": {"alidns_endpoint": address}}
        texts.setdefault(section, {})[key] = value
        lines = [
            f"[{name}]\n" + "\n".join(f"{k} = {v}" for k, v in keys.items()) for name, keys in texts.items()
        ]
        (tmp_path / "acme.ini").write_text("\n".join(lines))
        with pytest.raises(Failure):
            acme.connect(config.load(tmp_path / "acme.ini"), KEY)
        with pytest.raises(Failure):
            alibaba.connect(config.load(tmp_path / "acme.ini"), "alidns").call(DescribeDomainsRequest, {})
    assert server.requests == []


@pytest.mark.parametrize(
    ("variable", "value", "trusted_for"),
    [
        ("PYTHONHTTPSVERIFY", "0", set()),
        ("REQUESTS_CA_BUNDLE", "", set()),
        ("CURL_CA_BUNDLE", "", set()),
        ("SSL_CERT_FILE", "root", set()),
        ("ALIBABA_CLOUD_CA_BUNDLE", "root", set()),
        # docs/other-cas.md: as in every program that uses requests; the cloud has a setting of its own only.
        ("REQUESTS_CA_BUNDLE", "root", {"CA"}),
        ("CURL_CA_BUNDLE", "root", {"CA"}),
    ],
)
def test_the_environment_can_name_roots_for_the_ca_and_turn_nothing_off(
    server_with: Callable[..., CannedServer],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    trusted_for: set[str],
):
    server = server_with()
    monkeypatch.setenv(variable, server.ca_bundle if value == "root" else value)
    for whom, ask in ASK.items():
        with contextlib.nullcontext() if whom in trusted_for else pytest.raises(Failure, match="TLS|NoTls"):
            ask(server.base.removeprefix("https://"), None)
    assert bool(server.requests) == bool(trusted_for)


@pytest.mark.parametrize("whom", ASK)
def test_a_bundle_in_the_settings_is_the_only_one_that_counts(
    server_with: Callable[..., CannedServer], monkeypatch: pytest.MonkeyPatch, whom: str
):
    server = server_with()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", server.ca_bundle)
    with pytest.raises(Failure, match="TLS|NoTls"):
        ASK[whom](server.base.removeprefix("https://"), certifi.where())
    assert server.requests == []


class Proxy(threading.Thread):
    """An HTTP proxy that opens a tunnel to itself, and speaks there as whoever was asked for."""

    def __init__(self, files: ServerFiles) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(files.certificate, files.key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.asked: list[bytes] = []
        self.heard = b""

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with contextlib.suppress(OSError):
                self.asked.append(connection.recv(4096).partition(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with self.context.wrap_socket(connection, server_side=True) as tls:
                    self.heard += tls.recv(65536)
                    tls.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                    )


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known by its root"])
@pytest.mark.parametrize("whom", ASK)
def test_a_proxy_that_looks_inside_must_be_known_to_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whom: str, known: bool
):
    files = write_files(tmp_path)
    proxy = Proxy(files)
    proxy.start()
    monkeypatch.setenv("https_proxy", proxy.url)
    with contextlib.nullcontext() if known else pytest.raises(Failure, match="TLS|NoTls"):
        ASK[whom]("ca.example", str(files.root) if known else None)
    assert {line.rpartition(b" ")[0] for line in proxy.asked} == {b"CONNECT ca.example:443"}
    assert bool(proxy.heard) == known
