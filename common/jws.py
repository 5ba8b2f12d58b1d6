"""JSON Web Signatures as ACME uses them: base64url, JWK, thumbprint, signing.

RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (algorithms), RFC 7638 (thumbprint), RFC 8555 section 6.2.
"""

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

# RFC 7518 sections 3.4 and 6.2.1.1: curve -> ("alg", "crv", hash, octets of one coordinate).
_CURVES: dict[str, tuple[str, str, hashes.HashAlgorithm, int]] = {
    "secp256r1": ("ES256", "P-256", hashes.SHA256(), 32),
    "secp384r1": ("ES384", "P-384", hashes.SHA384(), 48),
}


def b64url(data: bytes) -> str:
    """Base64url without padding: the only binary-to-text form ACME knows (RFC 8555 section 6.1)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """The bytes behind base64url text; ValueError when it is not base64url."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def algorithm(key: PrivateKey) -> str:
    """The JWS "alg" for this key: RS256, ES256 or ES384 (RFC 7518 section 3.1)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return _curve(key)[0]


def jwk(key: PrivateKey) -> dict[str, str]:
    """The public half of a key as a JSON Web Key (RFC 7517; members from RFC 7518 section 6)."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers()
        return {"e": _unsigned(modulus.e), "kty": "RSA", "n": _unsigned(modulus.n)}
    _, name, _, size = _curve(key)
    point = key.public_key().public_numbers()
    return {"crv": name, "kty": "EC", "x": _unsigned(point.x, size), "y": _unsigned(point.y, size)}


def thumbprint(key: PrivateKey) -> str:
    """The thumbprint of a key's JWK (RFC 7638)."""
    return jwk_thumbprint(jwk(key))


def jwk_thumbprint(members: dict[str, str]) -> str:
    """Base64url of SHA-256 over a JWK's required members, and no others (RFC 7638)."""
    # Section 3.3: members sorted by name, no white space.
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return b64url(hashlib.sha256(canonical.encode()).digest())


def signature(key: PrivateKey, signing_input: bytes) -> bytes:
    """The JWS signature over ASCII(protected) "." ASCII(payload) (RFC 7515 section 5.1, step 5)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signing_input, padding.PKCS1v15(), hashes.SHA256())
    # RFC 7518 section 3.4: JWS wants the two numbers r and s side by side, each as long as the
    # curve, where X.509 and most libraries speak DER.
    _, _, digest, size = _curve(key)
    r, s = decode_dss_signature(key.sign(signing_input, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def encode(protected: dict[str, Any], payload: dict[str, Any] | None) -> tuple[str, str]:
    """Protected header and payload, each as base64url of its JSON; a payload of None is the empty string.

    The empty payload is what makes a POST a POST-as-GET (RFC 8555 section 6.3).
    """
    encoded = "" if payload is None else b64url(json.dumps(payload).encode())
    return b64url(json.dumps(protected).encode()), encoded


def sign(key: PrivateKey, protected: dict[str, Any], payload: dict[str, Any] | None) -> dict[str, str]:
    """A whole flattened JWS (RFC 7515 section 7.2.2): {"protected", "payload", "signature"}."""
    header, body = encode(protected, payload)
    signed = signature(key, f"{header}.{body}".encode("ascii"))
    return {"protected": header, "payload": body, "signature": b64url(signed)}


def sign_hmac(key: bytes, protected: dict[str, Any], payload: dict[str, Any]) -> dict[str, str]:
    """A flattened JWS signed with HMAC-SHA256, for external account binding (RFC 8555 section 7.3.4)."""
    header, body = encode(protected, payload)
    signed = hmac.digest(key, f"{header}.{body}".encode("ascii"), "sha256")
    return {"protected": header, "payload": body, "signature": b64url(signed)}


def _curve(key: ec.EllipticCurvePrivateKey) -> tuple[str, str, hashes.HashAlgorithm, int]:
    curve = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if curve not in _CURVES:
        raise ValueError(f"ACME CAs take RSA, P-256 and P-384 keys, not {curve}")
    return _CURVES[curve]


def _unsigned(number: int, size: int | None = None) -> str:
    """Base64urlUInt of RFC 7518 section 2; coordinates are padded to the size of their curve."""
    return b64url(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))
