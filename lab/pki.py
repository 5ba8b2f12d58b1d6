"""The TLS certificates of the lab's own listeners, and its certificate files."""

import datetime
import ipaddress
import os
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=90)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class ServerFiles(NamedTuple):
    """Where the TLS root, the server's certificate and its private key were written."""

    root: Path
    certificate: Path
    key: Path


def write_server_files(directory: Path) -> ServerFiles:
    """Make a new TLS root and a server certificate for loopback; the root's own key is never written."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _build("ACME lab TLS root", root_key.public_key(), "ACME lab TLS root", root_key, authority=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _build("localhost", key.public_key(), "ACME lab TLS root", root_key, names=LOOPBACK_NAMES)
    files = ServerFiles(
        directory / "lab-root.pem", directory / "lab-server.pem", directory / "lab-server.key"
    )
    files.root.write_bytes(_pem(root))
    files.certificate.write_bytes(_pem(certificate))
    write_private(files.key, _key_pem(key))
    return files


def self_signed(name: str) -> tuple[str, str]:
    """A self-signed certificate that no client trusts: (certificate PEM, private key PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _build(name, key.public_key(), name, key)
    return _pem(certificate).decode(), _key_pem(key).decode()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that is readable by its owner alone from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def _build(
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...] = (),
    authority: bool = False,
) -> x509.Certificate:
    """Build and sign one certificate with the extensions that strict verification wants (RFC 5280 §4.2)."""
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # An hour of grace, for clocks that were just set back.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
        .add_extension(_key_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if names:
        general_names = [_general_name(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names), critical=False)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
