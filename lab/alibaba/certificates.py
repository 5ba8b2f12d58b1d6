"""What CDN and API Gateway demand of an uploaded certificate and its key.

Doc "certificate formats" of Alibaba Cloud CDN: PEM, the leaf first and then its issuers in order, the key
in PKCS#1 ("BEGIN RSA PRIVATE KEY"), a PKCS#8 key ("BEGIN PRIVATE KEY") to be converted first, no passphrase.
An EC key is taken in its traditional form (SEC1, "BEGIN EC PRIVATE KEY"), as the console's text asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

CERTIFICATE_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
KEY_BLOCK = re.compile(
    # openssl writes the curve in front of an EC key; Alibaba's console shows it that way.
    r"(?:-----BEGIN EC PARAMETERS-----\s[A-Za-z0-9+/=\s]+-----END EC PARAMETERS-----\s+)?"
    r"(-----BEGIN (RSA|EC) PRIVATE KEY-----\s[A-Za-z0-9+/=\s]+-----END \2 PRIVATE KEY-----)"
)
MAXIMUM_CHAIN = 10


class BadCertificateError(Exception):
    """The certificate or its chain cannot be used."""


class BadPrivateKeyError(Exception):
    """The private key is not in a form the service reads."""


class KeyMismatchError(Exception):
    """The private key belongs to another certificate."""


@dataclass(frozen=True)
class ServerCertificate:
    """A certificate chain and its key, as they were uploaded, and what the leaf says."""

    chain_pem: str
    private_key_pem: str = field(repr=False)
    leaf: x509.Certificate
    dns_names: tuple[str, ...]
    common_name: str
    issuer: str

    def covers(self, domain: str) -> bool:
        """Whether a client that asks for the domain would accept it; ".example.com" is a wildcard domain."""
        wanted = f"*{domain}".lower() if domain.startswith(".") else domain.lower()
        parent = "*." + wanted.partition(".")[2]
        return any(name.lower() in (wanted, parent) for name in self.dns_names)


# What the parser raises for certificates that are none: each of its parts has a way of its own.
UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
)


def read(chain_pem: str, private_key_pem: str) -> ServerCertificate:
    """Parse and check an upload; raises one of the three exceptions above."""
    key = read_private_key(private_key_pem)
    try:
        leaf = read_chain(chain_pem)[0]
        certificate = ServerCertificate(chain_pem, private_key_pem, leaf, *read_names(leaf))
        leaf_spki = spki(leaf.public_key())
    except UNREADABLE as error:
        raise BadCertificateError from error
    if leaf_spki != spki(key.public_key()):
        raise KeyMismatchError
    if not leaf.not_valid_before_utc <= datetime.now(timezone.utc) < leaf.not_valid_after_utc:
        raise BadCertificateError
    return certificate


def read_chain(pem: str) -> list[x509.Certificate]:
    """The certificates of a PEM text: nothing but certificates, each issued by the next."""
    blocks = CERTIFICATE_BLOCK.findall(pem)
    if not 0 < len(blocks) <= MAXIMUM_CHAIN or CERTIFICATE_BLOCK.sub("", pem).strip():
        raise BadCertificateError
    chain = [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    for certificate, issuer in zip(chain, chain[1:], strict=False):
        certificate.verify_directly_issued_by(issuer)
    return chain


def read_names(leaf: x509.Certificate) -> tuple[tuple[str, ...], str, str]:
    """(DNS names, common name or else the first DNS name, issuer's organization or else its common name)."""
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        dns_names: tuple[str, ...] = ()
    else:
        dns_names = tuple(extension.value.get_values_for_type(x509.DNSName))
    common_names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    issuers = [
        *leaf.issuer.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME),
        *leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME),
    ]
    common_name = str(common_names[0].value) if common_names else next(iter(dns_names), "")
    return dns_names, common_name, str(issuers[0].value) if issuers else ""


def read_private_key(pem: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """An unencrypted RSA or EC key in its traditional form."""
    match = KEY_BLOCK.fullmatch(pem.strip())
    if match is None:
        raise BadPrivateKeyError
    try:
        key = load_pem_private_key(match[1].encode(), password=None)
    except Exception as error:
        # cryptography names no common class for the ways in which a key can be malformed.
        raise BadPrivateKeyError from error
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise BadPrivateKeyError
    return key


def spki(key: Any) -> bytes:
    """A public key as bytes that can be compared."""
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
