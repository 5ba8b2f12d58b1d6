"""Keys and certificates: read, split a chain, match key, names and dates, see what a server serves. RFC 5280."""

import base64
import re
import socket
import ssl
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from common import names
from common.failure import Failure, Usage

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

# No "-" within: else a megabyte of beginnings without an end would be searched for minutes.
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s[^-]+-----END CERTIFICATE-----\r?\n?")
# What the parser raises for what is no certificate or signing request, or has a part that cannot be.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
# A CA's clock and ours may differ a little; a certificate this young is good.
_CLOCK_TOLERANCE = timedelta(minutes=5)


def new_private_key(key_type: str) -> PrivateKey:
    """A new key: ec256, ec384, rsa2048, rsa3072 or rsa4096 (what Let's Encrypt takes for accounts and certificates)."""
    if key_type == "ec256":
        return ec.generate_private_key(ec.SECP256R1())
    if key_type == "ec384":
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type.removeprefix("rsa")))


def key_type(key: PrivateKey) -> str:
    """The type of a key, as new_private_key() takes it."""
    return f"{'ec' if isinstance(key, ec.EllipticCurvePrivateKey) else 'rsa'}{key.key_size}"


def private_key_pem(key: PrivateKey) -> bytes:
    """PEM as most programs want it today: PKCS#8, "BEGIN PRIVATE KEY", no passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def traditional_private_key_pem(key: PrivateKey) -> str:
    """PEM as Alibaba Cloud wants it: PKCS#1, "BEGIN RSA PRIVATE KEY", or SEC1, "BEGIN EC PRIVATE KEY"."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return pem.decode("ascii")


def load_private_key(pem: bytes, file: Path) -> PrivateKey:
    """An unencrypted RSA or P-256/P-384 key from PEM; Usage, naming the file, for anything else."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is not chained: a parser's message could quote what it read.
        raise Usage(
            f"{file} is not an unencrypted PEM private key", "restore it, or move it away and make a new one"
        ) from None
    if isinstance(key, rsa.RSAPrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return key
    raise Usage(f"{file}: is neither an RSA nor a P-256 or P-384 key", "CAs take no other; make a new one")


def public_key_der(key: PrivateKey | x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """The SubjectPublicKeyInfo: equal for a key, its CSR and its certificate."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_csr(pem: bytes, file: Path) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(pem)
        # The parser itself looks no further; what is used later must be readable too.
        dns_names(csr)
        csr.public_key()
        return csr
    except _UNREADABLE:
        raise Usage(
            f"{file} is not a PEM certificate signing request", "run 02_create_cert_key_csr.py"
        ) from None


def dns_names(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The DNS names of the subject alternative name extension, in lower case (RFC 5280 section 4.2.1.6)."""
    try:
        extension = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]


def split_chain(pem: bytes, source: str | Path) -> list[x509.Certificate]:
    """The certificates of a PEM chain, in the order they stand; Failure when one is damaged or there is none."""
    blocks = _CERTIFICATE.findall(pem)
    if len(blocks) < pem.count(b"-----BEGIN CERTIFICATE-----"):
        raise Failure(f"{source}: ends in the middle of a certificate", "get it anew: 06_finalize.py")
    try:
        certificates = [_readable(x509.load_pem_x509_certificate(block)) for block in blocks]
    except _UNREADABLE as error:
        # cryptography's message goes on with an address in its own documentation.
        reason = str(error).partition(". See ")[0]
        raise Failure(
            f"{source}: a certificate in it cannot be read ({reason})", "get it anew: 06_finalize.py"
        ) from None
    if not certificates:
        raise Failure(f"{source}: holds no PEM certificate", "get it anew: 06_finalize.py")
    return certificates


def _readable(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, if every part that is used later can be read: the parser itself looks no further."""
    dns_names(certificate)
    for part in ("subject", "issuer", "not_valid_before_utc", "not_valid_after_utc", "serial_number"):
        getattr(certificate, part)
    certificate.public_key()
    return certificate


def certificate_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def serial_hex(certificate: x509.Certificate) -> str:
    """The serial number as CAs print it: lower-case hex, whole octets. (openssl prints the same in capitals.)"""
    text = f"{certificate.serial_number:x}"
    return "0" * (len(text) % 2) + text


def certificate_id(certificate: x509.Certificate) -> str:
    """How a CA's renewal information names a certificate: issuer's key id, dot, serial (RFC 9773 section 4.1).

    ValueError when the certificate does not say which key its issuer has.
    """
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        authority = None
    if authority is None or authority.key_identifier is None:
        raise ValueError("the certificate has no authority key identifier")
    # The serial as it stands in DER: a first octet of 0 where the number would else be negative.
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (authority.key_identifier, octets)
    )


def issuer_name(certificate: x509.Certificate) -> str:
    """The issuer's common name, or its whole name where it has none."""
    common_names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common_names[0].value) if common_names else certificate.issuer.rfc4514_string()


def check_certificate(leaf: x509.Certificate, key: PrivateKey, wanted: Iterable[str]) -> None:
    """Failure unless the certificate is for this key and all these names, and valid now."""
    if public_key_der(leaf) != public_key_der(key):
        raise Failure(
            "the certificate is for another key than the one it was asked for with",
            "order anew: 02, 04, 05, 06",
        )
    held = dns_names(leaf)
    missing = [name for name in wanted if name not in held]
    if missing:
        raise Failure(
            f"the certificate lacks {', '.join(missing)}; it has {', '.join(held)}",
            "order anew: 02, 04, 05, 06",
        )
    check_dates(leaf)


def check_chain(chain: list[x509.Certificate]) -> None:
    """Failure unless each certificate of the chain was issued by the one after it."""
    for number, (certificate, issuer) in enumerate(zip(chain, chain[1:], strict=False), start=1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise Failure(
                f"the chain is not in order: certificate {number} was not issued by certificate {number + 1}",
                "run 06_finalize.py again; if it stays so, tell the CA",
            ) from None


def check_dates(leaf: x509.Certificate) -> None:
    """Failure unless the certificate is valid now."""
    now = datetime.now(timezone.utc)
    if now > leaf.not_valid_after_utc:
        raise Failure(
            f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            "get a new one: 02, 04, 05, 06",
        )
    if now + _CLOCK_TOLERANCE < leaf.not_valid_before_utc:
        raise Failure(
            f"the certificate is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on",
            "is this machine's clock right?",
        )


def covers(certificate: x509.Certificate, domain: str) -> bool:
    """Whether the certificate may be served for a domain; ".example.com" and "*.example.com" want the wildcard."""
    wanted = f"*{domain}" if domain.startswith(".") else domain
    return any(name == wanted or names.covers(name, wanted) for name in dns_names(certificate))


def served_certificate(server_name: str, at: tuple[str, int], timeout: float = 10) -> x509.Certificate:
    """The leaf a TLS server sends for a name (SNI), whoever signed it; OSError when there is no handshake.

    This looks, and trusts nothing: the caller compares. served_chain_problem() does the trusting.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(at, timeout) as connection,
        context.wrap_socket(connection, server_hostname=server_name) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    if not der:
        raise OSError("the server sent no certificate")
    try:
        return _readable(x509.load_der_x509_certificate(der))
    except _UNREADABLE:
        raise OSError("the server's certificate cannot be read") from None


def served_chain_problem(
    server_name: str, at: tuple[str, int], chain: list[x509.Certificate], timeout: float = 10
) -> str | None:
    """What a browser that trusts the chain's issuer would object to: None, or the reason.

    The one trusted certificate is the last of our own chain, so the server must send all that is between, for
    this name, within its dates; and it works alike for staging, private and public CAs.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate_pem(chain[-1:]).decode("ascii"))
    try:
        with socket.create_connection(at, timeout) as connection:
            context.wrap_socket(connection, server_hostname=server_name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError as error:
        return error.strerror or str(error)
    return None
