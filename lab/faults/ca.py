"""What may go wrong with a CA, made by the proxy in front of it (lab/ca_proxy.py)."""

import datetime
import json
import re
from dataclasses import dataclass, field, replace
from email.utils import format_datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.faults import Call, ConnectionLost, Part

# Pebble's paths, which are the proxy's: the first that a path begins with names the resource (RFC 8555 section 7.1).
RESOURCES = {
    "/dir": "directory",
    "/nonce-plz": "newNonce",
    "/sign-me-up": "newAccount",
    "/my-account/": "account",
    "/order-plz": "newOrder",
    "/my-order/": "order",
    "/authZ/": "authorization",
    "/chalZ/": "challenge",
    "/finalize-order/": "finalize",
    "/certZ/": "certificate",
    "/revoke-cert": "revokeCert",
    "/rollover-account-key": "keyChange",
    "/draft-ietf-acme-ari": "renewalInfo",
}
# All that is signed, which is all but the directory, newNonce and renewalInfo.
SIGNED = tuple(name for name in RESOURCES.values() if name not in ("directory", "newNonce", "renewalInfo"))
ORDERS = ("newOrder", "order", "finalize")

PART = Part("CA", tuple(RESOURCES.values()))


@dataclass(frozen=True)
class Request:
    """A request at the CA, as the proxy read it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def resource(self) -> str:
        return next((name for path, name in RESOURCES.items() if self.path.startswith(path)), "other")

    @property
    def host(self) -> str:
        return dict(self.headers)["Host"]


@dataclass(frozen=True)
class Reply:
    """An answer of the CA.

    cut: reset the connection after so many octets of the body; drip: seconds before each octet of it
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    cut: int | None = None
    drip: float = 0.0

    def header(self, name: str, value: str | None) -> "Reply":
        """With this header in place of what there was; without it for None."""
        others = [(n, v) for n, v in self.headers if n.lower() != name.lower()]
        return replace(self, headers=others + ([(name, value)] if value is not None else []))

    def json(self, **members: Any) -> "Reply":
        """With these members in a body that is a JSON object; None takes one out."""
        if self.status >= 400 or not self.body.startswith(b"{"):
            return self
        document = json.loads(self.body) | members
        return replace(self, body=json.dumps({k: v for k, v in document.items() if v is not None}).encode())


def document(reply: Reply) -> dict[str, Any]:
    """The JSON object in a body, or nothing."""
    return json.loads(reply.body) if reply.body.startswith(b"{") else {}


# The connection.


@PART.fault(*SIGNED)
def ca_slow(call: Call) -> Reply:
    """The answer is late, by 2 s or =SECONDS."""
    reply = call.ask()
    call.pause(2.0 if call.value is None else call.value)
    return reply


@PART.fault(*SIGNED)
def ca_hang(call: Call) -> Reply:
    """No answer comes, and the connection stays open."""
    call.pause(600)
    raise ConnectionLost


@PART.fault(*SIGNED)
def ca_drip(call: Call) -> Reply:
    """The answer comes an octet at a time, one in 2 s or =SECONDS."""
    return replace(call.ask(), drip=2.0 if call.value is None else call.value)


@PART.fault(*SIGNED)
def ca_reset_before(call: Call) -> Reply:
    """The connection breaks before the CA has seen the request."""
    raise ConnectionLost


@PART.fault(*SIGNED)
def ca_reset_within(call: Call) -> Reply:
    """The connection breaks in the middle of the answer."""
    reply = call.ask()
    return replace(reply, cut=len(reply.body) // 2)


@PART.fault(*SIGNED)
def ca_reset_after(call: Call) -> Reply:
    """The CA does what it is asked, and the connection breaks before the answer."""
    call.ask()
    raise ConnectionLost


# Refusals.


def _refusal(status: int, name: str, retry_after: str | None, words: str) -> None:
    def refuse(call: Call) -> Reply:
        header = retry_after
        if header == "date":
            moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=3)
            header = format_datetime(moment, usegmt=True)
        if status == 503:
            # As a load balancer says it: not in JSON (Let's Encrypt, "Rate Limits").
            reply = Reply(status, [("Content-Type", "text/html")], b"<h1>503 Service Unavailable</h1>")
        else:
            kind = {429: "rateLimited", 500: "serverInternal"}[status]
            body = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "a fault", "status": status}
            reply = Reply(status, [("Content-Type", "application/problem+json")], json.dumps(body).encode())
        return reply.header("Retry-After", header)

    PART.fault(*SIGNED, name=name, description=words)(refuse)


_refusal(429, "ca-429", "3", "429 rateLimited, with Retry-After in seconds")
_refusal(429, "ca-429-date", "date", "429 rateLimited, with Retry-After as a date")
_refusal(429, "ca-429-bare", None, "429 rateLimited, without Retry-After")
_refusal(429, "ca-429-absurd", "9" * 30, "429 rateLimited, to be asked again after the end of the world")
_refusal(500, "ca-500", "60", "500 serverInternal, with Retry-After")
_refusal(503, "ca-503", "3", "503 in HTML, with Retry-After in seconds")
_refusal(503, "ca-503-date", "date", "503 in HTML, with Retry-After as a date")
_refusal(503, "ca-503-bare", None, "503 in HTML, without Retry-After")
_refusal(503, "ca-503-absurd", "9" * 30, "503 in HTML, to be asked again after the end of the world")


# Bodies that are not what they should be.


@PART.fault(*SIGNED)
def ca_html(call: Call) -> Reply:
    """The body is a page of HTML, as a captive portal sends it."""
    page = b"<!doctype html><title>Welcome</title><p>Please log in."
    return replace(call.ask().header("Content-Type", "text/html; charset=utf-8"), body=page)


@PART.fault(*SIGNED)
def ca_empty(call: Call) -> Reply:
    """The body is empty."""
    return replace(call.ask(), body=b"")


@PART.fault(*SIGNED)
def ca_truncated(call: Call) -> Reply:
    """The body is cut in half, with a Content-Length that fits."""
    reply = call.ask()
    return replace(reply, body=reply.body[: len(reply.body) // 2])


@PART.fault(*SIGNED)
def ca_not_utf8(call: Call) -> Reply:
    """The body holds octets that are not UTF-8."""
    reply = call.ask()
    return replace(reply, body=b"\xff\xfe" + reply.body.replace(b'"', b'"\xff', 1))


@PART.fault(*SIGNED)
def ca_huge(call: Call) -> Reply:
    """The body has 50 MB."""
    return replace(call.ask(), body=b'{"status":"' + b"a" * 50_000_000 + b'"}')


@PART.fault(*SIGNED)
def ca_deep(call: Call) -> Reply:
    """The body is JSON, nested a hundred thousand times."""
    return replace(call.ask(), body=b'{"status":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@PART.fault(*SIGNED)
def ca_content_type(call: Call) -> Reply:
    """The Content-Type is text/plain, whatever the body is."""
    return call.ask().header("Content-Type", "text/plain")


# Headers.


@PART.fault("newAccount", "newOrder")
def ca_no_location(call: Call) -> Reply:
    """The Location of what was made is missing."""
    return call.ask().header("Location", None)


@PART.fault()
def ca_no_nonce(call: Call) -> Reply:
    """Replay-Nonce is missing."""
    return call.ask().header("Replay-Nonce", None)


@PART.fault()
def ca_old_nonce(call: Call) -> Reply:
    """Replay-Nonce is the same each time."""
    return call.ask().header("Replay-Nonce", "c2FtZS1hcy1ldmVyLWJ1dC1sb25nLWVub3VnaA")


@PART.fault(*SIGNED)
def ca_redirect(call: Call) -> Reply:
    """302 to another host."""
    return Reply(302, [("Location", "https://localhost:9/elsewhere")])


@PART.fault(*SIGNED)
def ca_redirect_http(call: Call) -> Reply:
    """302 to the same address over plain http."""
    return Reply(302, [("Location", f"http://{call.request.host}{call.request.path}")])


# What RFC 8555 knows.


@PART.fault("directory")
def ca_random_entry(call: Call) -> Reply:
    """The directory has entries that nobody knows, of every type."""
    return call.ask().json(
        aBcDeFgHiJk="https://community.letsencrypt.org/t/adding-random-entries-to-the-directory/33417",
        zero=0,
        list=[],
        object={"inner": [1]},
    )


@PART.fault("order", "finalize")
def ca_pending(call: Call) -> Reply:
    """The order is pending, however long one asks: validation takes for ever."""
    return call.ask().json(status="pending", certificate=None)


@PART.fault("order", "finalize")
def ca_processing(call: Call) -> Reply:
    """The order is processing, however long one asks: issuing takes for ever."""
    return call.ask().json(status="processing", certificate=None)


@PART.fault("order", "finalize")
def ca_invalid_order(call: Call) -> Reply:
    """The order is invalid, with a reason for each name in subproblems."""
    reply = call.ask()
    error = "urn:ietf:params:acme:error:"
    reasons = [
        {"type": f"{error}caa", "detail": "CAA forbids it", "identifier": identifier}
        for identifier in document(reply).get("identifiers", [])
    ]
    problem = {"type": f"{error}compound", "detail": "see below", "status": 403, "subproblems": reasons}
    return reply.json(status="invalid", error=problem, certificate=None)


@PART.fault("newOrder", "order")
def ca_other_host(call: Call) -> Reply:
    """Every URL of the order is at another host, where nobody listens."""
    reply = call.ask()
    here, elsewhere = f"https://{call.request.host}/", "https://localhost:9/"
    location = dict(reply.headers).get("Location")
    reply = reply.header("Location", location.replace(here, elsewhere)) if location else reply
    return replace(reply, body=reply.body.replace(here.encode(), elsewhere.encode()))


_NEW_KINDS = (
    {"type": "dns-persist-01", "status": "pending", "issuer-domain-names": ["authority.example"]},
    {"type": "from-the-future-02", "url": 5, "token": ["?"]},
)


@PART.fault("authorization")
def ca_unknown_challenges(call: Call) -> Reply:
    """Before the known challenges stand some of unknown types, without a token."""
    reply = call.ask()
    return reply.json(challenges=[*_NEW_KINDS, None, *document(reply).get("challenges", [])])


@PART.fault("authorization")
def ca_no_dns01(call: Call) -> Reply:
    """Authorizations offer challenges of unknown types only."""
    return call.ask().json(challenges=list(_NEW_KINDS))


@PART.fault("authorization")
def ca_token(call: Call) -> Reply:
    """Challenges have a token with slashes and dots, which is a path."""
    reply = call.ask()
    challenges = [
        challenge | {"token": "../../../etc/passwd"} for challenge in document(reply).get("challenges", [])
    ]
    return reply.json(challenges=challenges)


# The certificate.


@PART.fault("order", "finalize")
def ca_no_certificate(call: Call) -> Reply:
    """The order is valid, and says of no certificate."""
    return call.ask().json(certificate=None)


@PART.fault("certificate")
def ca_other_key(call: Call) -> Reply:
    """The certificate is for another key."""
    return _reissued(call.ask(), key=ec.generate_private_key(ec.SECP256R1()).public_key())


@PART.fault("certificate")
def ca_other_names(call: Call) -> Reply:
    """The certificate is for another name."""
    return _reissued(call.ask(), names=["other.test"])


@PART.fault("certificate")
def ca_expired(call: Call) -> Reply:
    """The certificate expired yesterday."""
    return _reissued(call.ask(), days=(-91, -1))


@PART.fault("certificate")
def ca_chain_disorder(call: Call) -> Reply:
    """The issuers in the chain stand in the wrong order."""
    reply = call.ask()
    leaf, *issuers = _blocks(reply.body)
    return replace(reply, body=b"".join([leaf, *reversed(issuers)] if len(issuers) > 1 else [*issuers, leaf]))


@PART.fault("certificate")
def ca_no_chain(call: Call) -> Reply:
    """The certificate comes without its issuers."""
    reply = call.ask()
    return replace(reply, body=b"".join(_blocks(reply.body)[:1]))


@PART.fault("certificate")
def ca_no_pem(call: Call) -> Reply:
    """What should be the certificate is no PEM."""
    return replace(call.ask(), body=b"-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")


def _blocks(pem: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", pem, re.DOTALL)


def _reissued(
    reply: Reply,
    key: ec.EllipticCurvePublicKey | None = None,
    names: list[str] | None = None,
    days: tuple[int, int] = (-1, 89),
) -> Reply:
    """The chain with its leaf made anew, different in one thing, under an issuer of this very moment."""
    blocks = _blocks(reply.body)
    if reply.status != 200 or not blocks:
        return reply
    real = x509.load_pem_x509_certificate(blocks[0])
    held = real.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = x509.SubjectAlternativeName([x509.DNSName(n) for n in names]) if names else held
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA with a fault")])
    now = datetime.datetime.now(datetime.timezone.utc)

    def build(subject: x509.Name, public_key: Any, extension: Any, first: int, last: int) -> bytes:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=first))
            .not_valid_after(now + datetime.timedelta(days=last))
            .add_extension(extension, critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    leaf = build(x509.Name([]), key or real.public_key(), wanted, *days)
    authority = build(issuer, issuer_key.public_key(), x509.BasicConstraints(True, 0), -365, 365)
    return replace(reply, body=leaf + authority)
