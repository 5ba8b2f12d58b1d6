"""The mechanics of ACME: directory, nonces, signed POST, polling, problem documents. RFC 8555 section 6.

What is sent and what the answer means is the scripts' business; this module carries it there and back.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.utils import parse_header_links

from common import jws, show, x509
from common.failure import Failure, Usage

if TYPE_CHECKING:
    # Only named, so that who copies this file need not copy that one.
    from common.config import Settings

USER_AGENT = f"acme-alibaba/1.0 {requests.utils.default_user_agent()}"
TIMEOUT = (10, 30)  # seconds: to connect, between two bytes of the answer
ANSWER_TIMEOUT = 120  # seconds for a whole body, however steadily its octets trickle in
LARGEST_BODY = 1_000_000  # octets; a long chain has ten thousand
BAD_NONCE_TRIES = 20  # at 50 % refused nonces, one request in a million fails
LONGEST_RETRY_AFTER = 60  # seconds we wait for a server in place; beyond that the person decides
A_YEAR = 365 * 86400  # seconds; nobody means a longer Retry-After

# RFC 8555 section 6.7 and RFC 9773: the type of a problem -> what the person can do.
REMEDIES = {
    "accountDoesNotExist": "run 03_new_account.py; the CA does not know this account key",
    "alreadyReplaced": "run 04_new_order.py again; it orders without saying what it replaces",
    "alreadyRevoked": "nothing: the certificate is revoked",
    "badCSR": "run 02_create_cert_key_csr.py with names and a key type that the CA takes",
    "badNonce": "run it again; if it stays so, something between you and the CA repeats old answers",
    "badPublicKey": "choose another [account] or [certificate] key_type, and make that key anew",
    "badRevocationReason": "use another --reason; the CA does not take this one",
    "badSignatureAlgorithm": "choose another [account] key_type; the CA's answer lists the algorithms it takes",
    "caa": "the name's CAA record forbids this CA: add one that allows it, or use another CA",
    "compound": "see the reason for each name above",
    "connection": "the CA could not connect to your server; see the detail above",
    "dns": "the CA could not look the name up: check its name servers and DNSSEC",
    "externalAccountRequired": "set [acme] eab_key_id and eab_hmac_key_file to what the CA gave you",
    "incorrectResponse": "the CA saw no such TXT value: see which name servers answer for the name",
    "invalidContact": "correct [acme] contact",
    "invalidProfile": "correct [acme] profile",
    "malformed": "the CA did not understand the request; compare it, above, with the RFC section",
    "orderNotReady": "run 05_dns_challenge.py first",
    "rateLimited": "wait as long as the CA says; asking again sooner only prolongs it",
    "rejectedIdentifier": "the CA does not issue for this name; take it out of [certificate] domains",
    "serverInternal": "the CA has a fault of its own: try again in some minutes",
    "tls": "the CA found no good TLS at your server; dns-01 needs none, so see the detail above",
    "unauthorized": "check that this account and this key are the ones the CA knows; see the detail above",
    "unsupportedContact": "use a mailto: address in [acme] contact, or none",
    "unsupportedIdentifier": "the CA does not issue for this kind of identifier",
    "userActionRequired": "read the new terms at the CA's address, then run 03_new_account.py",
}


class Problem(Failure):
    """A problem document (RFC 7807, RFC 8555 section 6.7), or another answer that is an error.

    type: "rateLimited" for "urn:ietf:params:acme:error:rateLimited"; "" for what is no problem document
    """

    def __init__(self, asked: str, answer: Answer) -> None:
        document = answer.body if isinstance(answer.body, dict) else {}
        self.type = str(document.get("type", "")).removeprefix("urn:ietf:params:acme:error:")
        self.status = answer.status
        self.answer = answer
        lines = [f"{asked}: {answer.status} {self.type or answer.reason} {describe(document)}".rstrip()]
        remedy = REMEDIES.get(self.type, "see the CA's answer above")
        if answer.retry_after is not None:
            lines.append(f"the CA asks to wait {duration(answer.retry_after)}")
        if not self.type:
            # From something before the CA, such as a load balancer, that knows of no problem documents.
            remedy = REMEDIES["serverInternal"] if answer.status >= 500 else remedy
            remedy = REMEDIES["rateLimited"] if answer.status == 429 else remedy
        super().__init__("\n".join(lines), remedy)


def describe(document: Mapping[str, Any]) -> str:
    """A problem document in words, with its subproblems, each with its name (RFC 8555 section 6.7.1)."""
    lines = [str(document.get("detail", ""))]
    for sub in _objects(document.get("subproblems")):
        identifier = sub.get("identifier")
        name = identifier.get("value") if isinstance(identifier, dict) else None
        kind = str(sub.get("type", "")).rpartition(":")[2]
        lines.append(f"  {name or '(no identifier)'}: {kind} {sub.get('detail', '')}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers (any case), and the body, parsed when it is JSON."""

    url: str
    status: int
    reason: str
    headers: Mapping[str, str]
    body: Any

    @property
    def location(self) -> str:
        """The URL of what was made: an account, an order. Only here, never in the body."""
        if "Location" not in self.headers:
            raise Failure(
                f"{self.url}: the CA's answer has no Location", "run it again; if it stays so, tell the CA"
            )
        return self.headers["Location"]

    @property
    def retry_after(self) -> float | None:
        return retry_after(self.headers.get("Retry-After"))

    def object(self, **members: type) -> dict[str, Any]:
        """The body, which must be a JSON object with these members: object(status=str, authorizations=list)."""
        if not isinstance(self.body, dict):
            raise Failure(
                f"{self.url}: the CA's answer is not a JSON object",
                "run it again; if it stays so, is [acme] directory the address of an ACME CA?",
            )
        for name, kind in members.items():
            if not isinstance(self.body.get(name), kind):
                raise Failure(
                    f"{self.url}: the CA's answer has no usable {name}",
                    "run it again; if it stays so, tell the CA",
                )
        return self.body

    def links(self, relation: str) -> list[str]:
        """The URLs of the Link headers with this relation (RFC 8288)."""
        return [link["url"] for link in self.all_links() if link.get("rel") == relation]

    def all_links(self) -> list[dict[str, str]]:
        return parse_header_links(self.headers.get("Link", ""))


class Client:
    """One CA, one account key: GET what is public, POST what is signed.

    kid: the account URL; before there is one, the key itself identifies the account (RFC 8555 section 6.2)
    brief: show the directory and the nonces on one line each
    """

    def __init__(
        self,
        directory_url: str,
        key: jws.PrivateKey,
        kid: str | None = None,
        ca_bundle: str | None = None,
        brief: bool = True,
    ) -> None:
        self.key = key
        self.kid = kid
        self._verify: str | bool = ca_bundle or True
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Language": "en"})
        # Not followed anyway; but requests would take the address apart, and read the whole body, to know where to.
        self._session.get_redirect_target = lambda response: None  # type: ignore[method-assign, assignment]
        self._nonces: list[str] = []
        self._lock = threading.Lock()
        self._brief = brief
        self.directory = self.get(directory_url, brief).object()

    def url(self, resource: str) -> str:
        """The URL of a directory entry, such as "newOrder" (RFC 8555 section 7.1.1)."""
        url = self.directory.get(resource)
        if not isinstance(url, str):
            raise Failure(
                f"the CA's directory has no {resource}", "see [acme] directory: is it an ACME directory?"
            )
        return url

    def get(self, url: str, brief: bool = False) -> Answer:
        """A plain GET: the directory, renewalInfo. Tried again when the connection or the server fails."""
        return self._until_answered(lambda: self._exchange("GET", url, brief=brief))

    def fetch_nonce(self) -> None:
        """Ask for a nonce, and keep it for the next request (RFC 8555 section 7.2)."""
        answer = self._until_answered(lambda: self._exchange("HEAD", self.url("newNonce"), brief=self._brief))
        if "Replay-Nonce" not in answer.headers:
            raise Failure(f"{answer.url}: the CA's newNonce gave no Replay-Nonce", REMEDIES["serverInternal"])

    def _next_nonce(self) -> str:
        """A nonce that came with an earlier answer, else a fetched one (section 6.5)."""
        while True:
            with self._lock:
                if self._nonces:
                    return self._nonces.pop()
            self.fetch_nonce()

    def post(
        self,
        url: str,
        payload: dict[str, Any] | None,
        key: jws.PrivateKey | None = None,
        brief: bool = False,
        repeatable: bool = False,
    ) -> Answer:
        """A signed POST; a payload of None makes it a POST-as-GET (RFC 8555 sections 6.2 and 6.3).

        key: sign with this key and name it in the header, in place of the account's (revocation, section 7.6)
        repeatable: to ask twice does no harm, so it may be asked again where no answer came
        Errors: Problem for every status from 400 on; Failure when there is no answer.
        """

        def build(nonce: str) -> tuple[dict[str, str], dict[str, Any]]:
            signer = key or self.key
            protected: dict[str, Any] = {"alg": jws.algorithm(signer)}
            # Section 6.2: exactly one of the two.
            protected |= {"kid": self.kid} if self.kid and not key else {"jwk": jws.jwk(signer)}
            protected |= {"nonce": nonce, "url": url}
            return jws.sign(signer, protected, payload), protected

        if payload is None or repeatable:
            return self._until_answered(lambda: self.send(url, build, payload, brief))
        return self.send(url, build, payload, brief)

    def post_as_get(self, url: str, brief: bool = False) -> Answer:
        """Read a resource (RFC 8555 section 6.3)."""
        return self.post(url, None, brief=brief)

    def send(
        self,
        url: str,
        build: Callable[[str], tuple[dict[str, str], dict[str, Any]]],
        payload: dict[str, Any] | None,
        brief: bool = False,
    ) -> Answer:
        """POST the JWS that build(nonce) makes; with a new nonce when the CA refuses the first (section 6.5).

        build: nonce -> (the JWS, its protected header decoded, to be shown)
        """
        for attempt in range(1, BAD_NONCE_TRIES + 1):
            signed, protected = build(self._next_nonce())
            try:
                return self._exchange("POST", url, signed, protected, payload, brief)
            except Problem as problem:
                if problem.type != "badNonce" or attempt == BAD_NONCE_TRIES:
                    raise
                show.explain("badNonce")
                show.say(f"    badNonce: signed again with the nonce of this answer (try {attempt + 1})")
        raise AssertionError("unreachable")

    def poll(
        self,
        url: str,
        done: Callable[[dict[str, Any]], bool],
        what: str,
        timeout: float = 120,
        first: Answer | None = None,
    ) -> Answer:
        """Ask for a resource until done(body): at once, then from 0.25 s on ever more slowly, or as the CA says.

        what: for the person who waits, such as "order to be ready"
        timeout: seconds; Failure when it is over
        first: an answer that has the resource already; what it says of when to ask is obeyed
        """
        deadline = time.monotonic() + timeout
        pause = 0.25
        answer = first
        # What was not done a moment ago may be by now.
        if answer is None or (answer.retry_after is None and not done(answer.object(status=str))):
            answer = self.post_as_get(url, brief=True)
        with show.waiting(timeout) as waiting:
            while not done(answer.object(status=str)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failure(
                        f"waited {timeout:.0f} s for the {what}, but {url} is {answer.body['status']} still",
                        "run this again to go on waiting",
                    )
                waiting.update(f"the {what}, status {answer.body['status']}")
                time.sleep(min(pause if answer.retry_after is None else max(answer.retry_after, 0.1), left))
                pause = min(pause * 1.5, 5)
                answer = self.post_as_get(url, brief=True)
        return answer

    def _until_answered(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again, twice at most, what may safely be asked twice, as what only reads."""
        for pause in (0.5, 2.0):
            try:
                return ask()
            except Problem as problem:
                asked_to_wait = problem.answer.retry_after
                passing = problem.status >= 500 or (problem.status == 429 and asked_to_wait is not None)
                if not passing or (asked_to_wait or 0) > LONGEST_RETRY_AFTER:
                    raise
                pause = max(pause, asked_to_wait or 0)
            except Unreachable:
                pass
            pause *= random.uniform(1, 1.25)
            show.say(f"    asked again in {pause:.1f} s")
            time.sleep(pause)
        return ask()

    def _exchange(
        self,
        method: str,
        url: str,
        signed: dict[str, str] | None = None,
        protected: dict[str, Any] | None = None,
        payload: dict[str, Any] | None = None,
        brief: bool = False,
    ) -> Answer:
        """One request and its answer, shown; Problem when the answer is an error."""
        if not str(url).startswith("https://"):
            raise Failure(f"{url}: the CA gave an address that is not https", "do not use this CA")
        sent: dict[str, Any] = {}
        if signed:
            sent = {
                "protected": protected,
                "payload": '""  (empty: POST-as-GET)' if payload is None else payload,
                "signature": show.shorten(signed["signature"], 30),
            }
        started = time.monotonic()
        try:
            response = self._session.request(
                method,
                url,
                data=json.dumps(signed) if signed else None,
                # Exactly this type, no charset: CAs compare the text (RFC 8555 section 6.2).
                headers={"Content-Type": "application/jose+json"} if signed else None,
                timeout=TIMEOUT,
                # Given here and not on the session, where $REQUESTS_CA_BUNDLE would win over it.
                verify=self._verify,
                proxies={"no_proxy": _no_proxy()},
                # Sends nothing; without it, requests would send what ~/.netrc has for the host.
                auth=lambda request: request,
                # The url in a JWS names one resource; a redirect would carry it to another.
                allow_redirects=False,
                stream=True,
            )
            content = _read(response)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            # ValueError: the address cannot be one, or the answer's first lines are not HTTP.
            reason = _reason(error)
            show.exchange(method, url, sent, f"no answer: {reason}", {}, time.monotonic() - started, "acme")
            raise _unreachable(method, url, error, reason) from None
        if "Replay-Nonce" in response.headers:
            with self._lock:
                self._nonces.append(response.headers["Replay-Nonce"])
        answer = Answer(
            url, response.status_code, response.reason or "", response.headers, _parse(response, content)
        )
        show.exchange(
            method,
            url,
            sent,
            f"{answer.status} {answer.reason}" + _status_of(answer, brief),
            _told(answer),
            time.monotonic() - started,
            "acme",
            brief and answer.status < 400,
        )
        if answer.status >= 400:
            raise Problem(f"{method} {url}", answer)
        if answer.status >= 300:
            raise Failure(
                f"{method} {url}: redirected to {answer.headers.get('Location')}",
                "ACME has no redirects; see [acme] directory",
            )
        return answer


class Unreachable(Failure):
    """No answer: the connection failed, or broke before the answer was whole."""


def meta(directory: Mapping[str, Any], name: str) -> dict[str, Any] | str | None:
    """A text or an object of a directory's "meta" (RFC 8555 section 7.1.1); None when it has no such thing."""
    members = directory.get("meta")
    value = members.get(name) if isinstance(members, dict) else None
    return value if isinstance(value, str | dict) else None


def account_client(settings: Settings) -> Client:
    """A Client for the account that 03_new_account.py found or made."""
    key = load_account_key(settings)
    return connect(settings, key, load_account(settings)["account_url"])


def load_account_key(settings: Settings) -> jws.PrivateKey:
    """The account's key; Usage when it is not sure which key that is."""
    state = settings.state
    pem = state.read("account.key", "01_create_account_key.py")
    if state.exists("pending/account.key"):
        raise Usage(
            "a change of the account's key was begun and not finished", "run 12_change_account_key.py"
        )
    return x509.load_private_key(pem, state.path("account.key"))


def load_account(settings: Settings) -> dict[str, Any]:
    """What 03_new_account.py wrote; Usage when it belongs to another CA, or the account is no more."""
    account = settings.state.read_json("account.json", "03_new_account.py", account_url=str, directory=str)
    if account["directory"] != settings.acme.directory:
        raise Usage(
            f"{settings.state.path('account.json')} belongs to {account['directory']}, "
            f"but {settings.file} names {settings.acme.directory}",
            "give each CA a folder of its own: [files] directory = state-production",
        )
    if account.get("status") == "deactivated":
        raise Usage(
            f"the account {account['account_url']} is deactivated, for good",
            "begin another with 01_create_account_key.py, in another folder: [files] directory",
        )
    return account


def connect(settings: Settings, key: jws.PrivateKey, kid: str | None = None, brief: bool = True) -> Client:
    """A Client for the CA in the settings."""
    bundle = settings.acme.ca_bundle
    if bundle and not bundle.is_file():
        raise Usage(f"{settings.file}: [acme] ca_bundle: there is no file {bundle}", "correct the path")
    return Client(settings.acme.directory, key, kid, str(bundle) if bundle else None, brief)


def retry_after(header: str | None) -> float | None:
    """Retry-After in seconds from now, from either of its forms (RFC 9110 section 10.2.3); None when it is neither."""
    if header is None:
        return None
    if re.fullmatch("[ \t]*[0-9]+[ \t]*", header):
        return min(float(header), A_YEAR)
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    # RFC 9110 section 5.6.7: an HTTP date is GMT, even where it does not say so.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return min(max(0.0, (moment - datetime.now(timezone.utc)).total_seconds()), A_YEAR)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h, 9 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _no_proxy() -> str:
    """Whom not to reach through a proxy: whom the environment says, and this machine, where the lab is."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return f"{named},localhost,127.0.0.1,::1"


def _read(response: requests.Response) -> bytes:
    deadline = time.monotonic() + ANSWER_TIMEOUT
    content = b""
    # What has arrived, and not so many octets as are asked for: else the deadline would wait for them.
    while piece := response.raw.read1(65536, decode_content=True):
        content += piece
        too_long = len(content) > LARGEST_BODY
        if too_long or time.monotonic() > deadline:
            response.close()
            words = (
                f"is longer than {LARGEST_BODY} octets"
                if too_long
                else f"is not whole after {ANSWER_TIMEOUT} s"
            )
            raise requests.exceptions.ContentDecodingError(f"the answer {words}")
    return content


def _parse(response: requests.Response, content: bytes) -> Any:
    """JSON where the CA says it is JSON (with any "+json" and charset), text otherwise."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    text = content.decode("utf-8", errors="replace")
    if kind.endswith("json"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _told(answer: Answer) -> dict[str, Any]:
    """What of an answer is worth reading: the headers ACME gives a meaning to, and the body."""
    wanted = ("Location", "Retry-After", "Replay-Nonce")
    told: dict[str, Any] = {name: answer.headers[name] for name in wanted if name in answer.headers}
    # Every answer links back to the directory ("index"); that one is no news.
    links = [
        f"{link['url']} ({link.get('rel')})" for link in answer.all_links() if link.get("rel") != "index"
    ]
    if links:
        told["Link"] = "\n".join(links)
    if isinstance(answer.body, str):
        pem_blocks = answer.body.count("-----BEGIN CERTIFICATE-----")
        if pem_blocks:
            told["body"] = f"(PEM, {pem_blocks} certificates, {len(answer.body)} characters)"
        elif answer.body:
            told["body"] = show.shorten(answer.body)
    else:
        told["body"] = answer.body
    return told


def _status_of(answer: Answer, brief: bool) -> str:
    if brief and isinstance(answer.body, dict) and "status" in answer.body:
        return f", status {answer.body['status']}"
    return ""


def _reason(error: Exception) -> str:
    """The heart of a connection error: requests wraps it several times."""
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {_innermost(error)}"
    if isinstance(error, requests.exceptions.Timeout):
        return "timed out"
    return _innermost(error)


def _innermost(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or next(
        (a for a in error.args if isinstance(a, BaseException)), None
    )
    if isinstance(reason, BaseException):
        return _innermost(reason)
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # urllib3 begins with the connection's name and ends with the line of C that failed; neither helps.
    return re.sub(r"^HTTPSConnection(Pool)?\(.*?\): ", "", words).partition(" (_ssl.c")[0]


def _unreachable(method: str, url: str, error: Exception, reason: str) -> Failure:
    if isinstance(error, requests.exceptions.SSLError):
        return Failure(
            f"{method} {url}: {reason}", "set [acme] ca_bundle to the root of a private CA; check the clock"
        )
    return Unreachable(
        f"{method} {url}: {reason}", "check the network, the proxy, and [acme] directory; then run it again"
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list that a server sent; nothing when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
