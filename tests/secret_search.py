"""Looks for secrets in what programs print, write and send: in every form that a secret may take."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import jws

PIECE = 9  # octets; any twice as many of a secret in a row are found


def forms(piece: bytes) -> Iterator[bytes]:
    """Every way in which a few octets of a secret may stand in a text."""
    yield piece
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
    yield piece.hex(":").encode()
    for offset in range(3):
        # Within a longer base64 text, three phases are possible; what depends on the neighbours is cut off.
        encoded = base64.b64encode(bytes(offset) + piece)
        certain = encoded[4 if offset else 0 :].rstrip(b"=")[: (len(piece) * 8 - (24 - 8 * offset)) // 6]
        yield certain
        yield certain.translate(bytes.maketrans(b"+/", b"-_"))


def pieces(secret: bytes) -> Iterator[bytes]:
    """A secret cut into pieces, so that a part of it, such as a line of PEM, is found as well."""
    if len(secret) <= PIECE:
        yield secret
    for start in range(0, len(secret) - PIECE + 1, PIECE):
        yield secret[start : start + PIECE]


def views(text: bytes) -> list[bytes]:
    """A text as it is, without its percent-encoding, without line ends, and any of these together."""
    found = [text]
    for _ in range(2):
        decoded = unquote(found[-1].decode("latin-1"), encoding="latin-1").encode("latin-1")
        found.append(decoded)
    for view in list(found):
        plain = view.replace(b"\\n", b"").replace(b"\\r", b"").replace(b'\\"', b'"').replace(b"\\/", b"/")
        plain = re.sub(
            rb"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)).encode(errors="replace"), plain
        )
        found.append(b"".join(plain.split()))
    return found


class Searcher:
    """Looks for secrets: name -> octets."""

    def __init__(self, known: dict[str, bytes]) -> None:
        self.needles = {
            form: name for name, secret in known.items() for piece in pieces(secret) for form in forms(piece)
        }
        assert all(len(needle) >= 8 for needle in self.needles)

    def find(self, text: bytes) -> set[str]:
        """The names of the secrets that stand in a text, in whatever form."""
        seen = views(text)
        return {name for needle, name in self.needles.items() if any(needle in view for view in seen)}


def numbers(key: Any) -> dict[str, bytes]:
    """The private numbers of a key: whatever form a key is written in, they are what is written."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        values = {"d": key.private_numbers().private_value}
    else:
        private = key.private_numbers()
        values = {name: getattr(private, name) for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp")}
    return {name: value.to_bytes((value.bit_length() + 7) // 8, "big") for name, value in values.items()}


PKCS8 = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
TRADITIONAL = (serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())


def forms_of_key(key: Any) -> dict[str, bytes]:
    """A private key in the forms in which it could leak."""
    pem = key.private_bytes(serialization.Encoding.PEM, *PKCS8)
    traditional = key.private_bytes(serialization.Encoding.PEM, *TRADITIONAL)
    der = key.private_bytes(serialization.Encoding.DER, *PKCS8)
    number = numbers(key)["d"]
    return {
        "PEM": pem,
        "traditional PEM": traditional,
        "one line of PEM": pem.splitlines()[2 if isinstance(key, ec.EllipticCurvePrivateKey) else -5],
        "PEM in JSON": json.dumps({"key": pem.decode()}).encode(),
        "PEM in a query": quote(pem.decode(), safe="").encode(),
        "PEM in a string to sign": quote(quote(traditional.decode(), safe=""), safe="").encode(),
        "DER": der,
        "DER in base64": base64.b64encode(der),
        "DER in base64url": jws.b64url(der).encode(),
        "DER in hex": der.hex().encode(),
        "a number in base64url": jws.b64url(number).encode(),
        "a number in hex": number.hex().encode(),
        "a number as openssl prints it": number.hex(":").encode(),
    }


def forms_of_word(secret: str) -> dict[str, bytes]:
    """A password or a token in the forms in which it could leak."""
    raw = secret.encode()
    return {
        "itself": raw,
        "in JSON": json.dumps(secret).encode(),
        "in a query": quote(secret, safe="").encode(),
        "in a string to sign": quote(quote(secret, safe=""), safe="").encode(),
        "in base64": base64.b64encode(raw),
        "in base64, one octet further": base64.b64encode(b"1" + raw + b"2"),
        "in base64, two octets further": base64.b64encode(b"12" + raw + b"3"),
        "in base64url": jws.b64url(raw).encode(),
        "in hex": raw.hex().encode(),
        "in hex, upper case": raw.hex().upper().encode(),
    }
