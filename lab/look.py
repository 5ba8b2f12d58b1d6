"""A look from outside, as an expert takes it: keys, certificates, TLS servers, and a CA asked with an account's key.

The scripts' results are judged with this, so nothing of it is the scripts' own.
"""

import base64
import hashlib
import json
import os
import socket
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

TIMEOUT = 10.0
BAD_NONCE_TRIES = 20
# RFC 7518 sections 3.4 and 6.2.1.1: size of the curve in bits -> ("alg", "crv", hash).
CURVES: dict[int, tuple[str, str, hashes.HashAlgorithm]] = {
    256: ("ES256", "P-256", hashes.SHA256()),
    384: ("ES384", "P-384", hashes.SHA384()),
}


class Account:
    """The account of a key, as the CA has it; urllib's HTTPError when it has none, or has ended it.

    url: the account's; body: what the CA says of it
    """

    def __init__(self, directory_url: str, ca_bundle: Path, key: Key) -> None:
        tls = ssl.create_default_context(cafile=str(ca_bundle))
        # Loopback is never asked for through a proxy, whatever the environment says.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )
        self._key = key
        self._host = urlsplit(directory_url).netloc
        self._directory = json.loads(self._open(directory_url)[0])
        self._nonce = ""
        self._signer: dict[str, Any] = {"jwk": jwk(key)}
        answer, headers = self._post(self._directory["newAccount"], '{"onlyReturnExisting": true}')
        self.body, self.url = json.loads(answer), headers["Location"]
        self._signer = {"kid": self.url}

    def ask(self, url: str) -> Any:
        """A resource, by POST-as-GET."""
        return json.loads(self._post(url, "")[0])

    def text(self, url: str) -> str:
        """A resource that is no JSON: a certificate."""
        return self._post(url, "")[0]

    def order_urls(self) -> Iterator[str]:
        """The account's orders, from the CA's own list of them, page by page (RFC 8555 section 7.1.2.1)."""
        url = self.body["orders"]
        while url:
            page, headers = self._post(url, "")
            yield from json.loads(page)["orders"]
            links = [link for link in headers.get_all("Link", []) if 'rel="next"' in link]
            url = links[0].partition("<")[2].partition(">")[0] if links else ""

    def _post(self, url: str, payload: str) -> tuple[str, Any]:
        # An address that the scripts noted may lead through the lab's door in front of the CA; this goes straight in.
        url = urlsplit(url)._replace(netloc=self._host).geturl()
        for left in range(BAD_NONCE_TRIES, 0, -1):
            nonce = self._nonce or self._open(self._directory["newNonce"])[1]["Replay-Nonce"]
            header = {"alg": algorithm(self._key), "nonce": nonce, "url": url, **self._signer}
            protected, encoded = b64url(json.dumps(header).encode()), b64url(payload.encode())
            signature = b64url(sign(self._key, f"{protected}.{encoded}".encode()))
            body = json.dumps({"protected": protected, "payload": encoded, "signature": signature})
            try:
                answer, headers = self._open(url, body.encode())
            except urllib.error.HTTPError as refusal:
                self._nonce = refusal.headers.get("Replay-Nonce", "")
                if left == 1 or refusal.code != 400 or b"badNonce" not in refusal.read():
                    raise
                continue
            self._nonce = headers.get("Replay-Nonce", "")
            return answer, headers
        raise AssertionError("unreachable")

    def _open(self, url: str, body: bytes | None = None) -> tuple[str, Any]:
        headers = {"User-Agent": "acme-lab-look/1.0"}
        if body:
            headers["Content-Type"] = "application/jose+json"
        request = urllib.request.Request(url, body, headers)  # noqa: S310
        with self._opener.open(request, timeout=TIMEOUT) as response:
            return response.read().decode(), response.headers


def algorithm(key: Key) -> str:
    """The "alg" of a JWS by this key (RFC 7518 section 3.1)."""
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else CURVES[key.key_size][0]


def sign(key: Key, data: bytes) -> bytes:
    """The signature of a JWS (RFC 7518 sections 3.3 and 3.4)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    numbers = utils.decode_dss_signature(key.sign(data, ec.ECDSA(CURVES[key.key_size][2])))
    return b"".join(number.to_bytes(key.key_size // 8, "big") for number in numbers)


def jwk(key: Key) -> dict[str, str]:
    """The public key as JWK, its members sorted by name as the thumbprint wants them (RFC 7517, 7638)."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key().public_numbers()
        octets = public.n.to_bytes(key.key_size // 8, "big")
        return {"e": b64url(public.e.to_bytes(3, "big").lstrip(b"\0")), "kty": "RSA", "n": b64url(octets)}
    point, size = key.public_key().public_numbers(), key.key_size // 8
    x, y = (b64url(number.to_bytes(size, "big")) for number in (point.x, point.y))
    return {"crv": CURVES[key.key_size][1], "kty": "EC", "x": x, "y": y}


def thumbprint(key: Key) -> str:
    """The thumbprint of the JWK (RFC 7638)."""
    return b64url(hashlib.sha256(json.dumps(jwk(key), separators=(",", ":")).encode()).digest())


def served_certificate(address: str, name: str, roots: str | None = None) -> x509.Certificate:
    """The certificate that a server shows for a name; with `roots`, PEM, its chain is verified up to them.

    ssl.SSLCertVerificationError when it does not verify, another OSError when there is no handshake.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=roots)
    if roots is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def names(holder: x509.Certificate | x509.CertificateSigningRequest) -> set[str]:
    """The DNS names in the subject alternative name extension."""
    try:
        extension = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(extension.value.get_values_for_type(x509.DNSName))


def ascii_name(name: str) -> str:
    """A name as a certificate has it: lower case, A-labels."""
    return name.encode("idna").decode().lower()


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001  (one of several types, and all of them mean no)
        return False
    return True


def same_key(one: Any, other: Any) -> bool:
    """Whether two things have the same public key: keys, requests, certificates."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return one.public_key().public_bytes(*form) == other.public_key().public_bytes(*form)


def key_name(key: Any) -> str:
    return f"EC P-{key.key_size}" if isinstance(key, ec.EllipticCurvePrivateKey) else f"RSA {key.key_size}"


def serial(certificate: x509.Certificate) -> str:
    """The serial number, whole octets in hex, as the scripts print it."""
    text = f"{certificate.serial_number:x}"
    return "0" * (len(text) % 2) + text


def short_serial(certificate: x509.Certificate) -> str:
    return serial(certificate)[:8] + "…"


def mode_beyond(path: Path, allowed: int) -> str | None:
    """The mode of a file or folder that lets others do more than `allowed`, as four octal digits; else None."""
    # Windows has no such bits: a user's folder is private there by its access list.
    mode = stat.S_IMODE(path.stat().st_mode) if os.name == "posix" else allowed
    return f"{mode:04o}" if mode & ~allowed else None


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
