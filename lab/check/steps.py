"""What each of the scripts is to bring about, and how it looks when something else was done."""

import base64
import hashlib
import json
import time
import urllib.error
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import partial
from typing import NamedTuple

from cryptography import x509

from lab import look
from lab.check.work import NotYet, Work, Wrong

# Clean-up follows the proof at once; records that are there for longer were forgotten.
CLEAN_UP_SECONDS = 10
USED_UP = "used up: 06 has made a certificate of it"


class Step(NamedTuple):
    """A step and what became of it. state: done, wrong, or not yet"""

    name: str
    title: str
    state: str
    text: str
    hint: str = ""


def look_at(work: Work) -> list[Step]:
    """Every step."""
    return [judged(number, title, partial(judge, work)) for number, (title, judge) in STEPS.items()]


def judged(name: str, title: str, judge: Callable[[], str]) -> Step:
    """A step, or an exercise, and what its judge says of it."""
    try:
        return Step(name, title, "done", judge())
    except NotYet as reason:
        return Step(name, title, "not yet", str(reason))
    except Wrong as wrong:
        return Step(name, title, "wrong", str(wrong), wrong.hint)
    except urllib.error.HTTPError as refusal:
        # A request that crossed with one of the learner's: an account deactivated a moment ago.
        return Step(name, title, "not yet", f"the CA answers {refusal.code}")


def account_key(work: Work) -> str:
    """01: a private key, of a kind that CAs take, that nobody else can read."""
    if work.exists("pending/account.key"):
        raise Wrong(
            "there are two account keys: a change was begun and not finished",
            "which of the two has the account now? Only the CA knows. Which script asks it?",
        )
    key = work.private_key("account.key")
    work.check_private("account.key")
    return f"{look.key_name(key)}, its owner's alone"


def request(work: Work) -> str:
    """02: a key of its own, and a CSR by it with all the names."""
    if not work.exists("pending/certificate.key") and not work.exists("pending/certificate.csr"):
        if work.has_certificate:
            return USED_UP
        raise NotYet("there is no key and no CSR in pending/ yet")
    key = work.private_key("pending/certificate.key")
    work.check_private("pending/certificate.key")
    if look.same_key(key, work.private_key("account.key")):
        raise Wrong(
            "the certificate's key is the account's key",
            "RFC 8555 section 11.1: what could a thief do with one that serves for both?",
        )
    csr = work.csr
    if not csr.is_signature_valid or not look.same_key(csr, key):
        raise Wrong(
            "the CSR was not made with the key beside it",
            "06 will hand in the CSR, and be left with a certificate that it has no key for",
        )
    held = look.names(csr)
    compare = "compare [certificate] domains in the settings with: openssl req -noout -text -in"
    if work.domains - held:
        raise Wrong(f"the CSR lacks {_listed(work.domains - held)}", f"{compare} …/pending/certificate.csr")
    if held - work.domains:
        raise Wrong(
            f"the CSR has {_listed(held - work.domains)}, which the settings do not",
            f"{compare} …/pending/certificate.csr",
        )
    return f"{look.key_name(key)}, a CSR for {len(held)} names"


def account(work: Work) -> str:
    """03: the CA has an account for the key, and we know its URL."""
    noted = work.json("account.json")
    if work.deactivated:
        return "it was: the CA has deactivated it since"
    if not work.account:
        raise Wrong(
            "account.json names an account, but the CA has none for account.key",
            "an account belongs to a key, not to a name or a URL. Is this the key that it was made with?",
        )
    named = str(noted.get("account_url"))
    if _path(work.account.url) != _path(named):
        raise Wrong(
            f"the key's account is {_id(work.account.url)}, but account.json names {_id(named)}",
            "the CA tells a key its account as often as one asks. Which option of 03 asks?",
        )
    return f"the CA knows the key by account {_id(work.account.url)}"


def order(work: Work) -> str:
    """04: the CA has an order for the names."""
    if not work.exists("pending/order.json"):
        if work.has_certificate and not work.exists("pending/certificate.csr"):
            return USED_UP
        waiting = [
            o for o in work.orders if o["status"] in ("pending", "ready") and names_of(o) == work.domains
        ]
        if waiting and work.exists("account.key"):
            raise NotYet(f"the CA has an order that is {waiting[-1]['status']}, but order.json is not there")
        raise NotYet("there is no order.json in pending/ yet")
    found = work.order
    if not found:
        raise Wrong(
            "the CA does not know the order in order.json, or not as this account's",
            "whose is it? Each account sees its own orders only",
        )
    if found["status"] == "invalid":
        raise Wrong(
            f"the order is invalid{_reason(work, found)}", "an order that has failed stays so; what is next?"
        )
    if names_of(found) != work.domains:
        raise Wrong(
            f"the order is for {_listed(names_of(found))}, and not for the names in the settings",
            "which file does 04 take the names from?",
        )
    return f"the CA has it, for {len(found['identifiers'])} names: {found['status']}"


def proof(work: Work) -> str:
    """05: control of every name is proven, and no record is left behind."""
    if not work.exists("pending/order.json"):
        if work.has_certificate:
            _no_records_left(work)
            return "proven, or there would be no certificate"
        raise NotYet("there is no order to prove anything for")
    found = work.order
    if not found or found["status"] == "invalid":
        raise NotYet("there is no order that could still be proven")
    if found["status"] == "pending":
        raise NotYet(_under_way(work))
    _no_records_left(work)
    return f"every name is proven: the order is {found['status']}, the DNS as before"


def _under_way(work: Work) -> str:
    """How far the answers to the challenges have come; Wrong for an answer that is none."""
    key = work.private_key("account.key")
    ready = 0
    for name, token in work.challenges:
        seen = work.txt_values(name)
        right = txt_value(token, key)
        if all(right in values for values in seen):
            ready += 1
            continue
        for value in sorted(set().union(*seen)):
            if mistake := _mistakes(token, key).get(value):
                raise Wrong(
                    f"the TXT value at {name} is {mistake}",
                    "RFC 8555 section 8.1 says what a key authorization is, section 8.4 what is made of it",
                )
        if any(right in values for values in seen):
            return f"{name} has its value on one name server and not yet on the other"
    waiting = len(work.challenges)
    if ready < waiting or not waiting:
        return f"{ready} of {waiting} TXT values are in the DNS"
    return f"all {waiting} TXT values are in the DNS; the CA has not looked yet"


def txt_value(token: str, key: look.Key) -> str:
    """What dns-01 wants to see (RFC 8555 section 8.4)."""
    return look.b64url(hashlib.sha256(f"{token}.{look.thumbprint(key)}".encode()).digest())


def _mistakes(token: str, key: look.Key) -> dict[str, str]:
    """What else people publish: the value -> how it came about."""
    thumbprint = look.thumbprint(key)
    authorization = f"{token}.{thumbprint}"
    loose = look.b64url(hashlib.sha256(json.dumps(look.jwk(key)).encode()).digest())
    digest = hashlib.sha256(authorization.encode())
    standard = base64.b64encode(digest.digest()).decode()

    def hashed(text: str) -> str:
        return look.b64url(hashlib.sha256(text.encode()).digest())

    return {
        token: "the token as the CA gave it",
        thumbprint: "the thumbprint alone",
        authorization: "the key authorization itself, and not its SHA-256",
        hashed(token): "the SHA-256 of the token alone",
        hashed(thumbprint): "the SHA-256 of the thumbprint alone",
        hashed(token + thumbprint): "the SHA-256 of token and thumbprint with nothing between them",
        hashed(f"{thumbprint}.{token}"): "the SHA-256 of the two in the other order",
        hashed(authorization + "\n"): "the SHA-256 of the key authorization and a line end",
        hashed(f"{token}.{loose}"): "made with a thumbprint over JSON that has spaces in it",
        hashed(digest.hexdigest()): "a hash of the hash",
        digest.hexdigest(): "the right SHA-256, in hexadecimal",
        look.b64url(digest.hexdigest().encode()): "the hexadecimal text of the SHA-256, in base64url",
        standard: "the right SHA-256, in base64 and not in base64url",
        standard.translate(str.maketrans("+/", "-_")): "the right SHA-256, with padding at its end",
    }


def _no_records_left(work: Work) -> None:
    journal = work.state / "pending" / "dns_records.json"
    try:
        age = time.time() - journal.stat().st_mtime
    except FileNotFoundError:
        return
    count = len(work.json("pending/dns_records.json", entries=list)["entries"])
    records = f"{count} TXT record{'s are' if count > 1 else ' is'} still"
    if age < CLEAN_UP_SECONDS:
        raise NotYet(f"every name is proven; {records} to be taken back")
    raise Wrong(
        f"{records} in the zone, long after the proof",
        "05 noted them before it made them. What does it do with its notes when it is run again?",
    )


def certificate(work: Work) -> str:
    """06: the newest certificate, with its own key and its issuers, up to the CA's root."""
    if work.exists("pending/order.json") and work.order and work.order["status"] in ("ready", "valid"):
        raise NotYet("the CA has what it needs; the certificate is still to be fetched")
    chain = work.chain
    leaf = chain[0]
    key = work.private_key("certificate.key")
    work.check_private("certificate.key")
    if not look.same_key(leaf, key):
        raise Wrong(
            "certificate.key is not the key of fullchain.pem",
            "a server would not start with these two. history/ has every key beside its certificate",
        )
    if work.certificates("certificate.pem") != [leaf]:
        raise Wrong(
            "certificate.pem and fullchain.pem are of two certificates", "history/ has them by serial number"
        )
    if len(chain) == 1:
        raise Wrong("fullchain.pem holds no issuer", "a browser knows the root only. Who leads it there?")
    roots = x509.load_pem_x509_certificates(work.ca.roots.encode())
    links = all(look.issued_by(one, next_one) for one, next_one in zip(chain, chain[1:], strict=False))
    if not links or not any(look.issued_by(chain[-1], root) for root in roots):
        raise Wrong(
            "fullchain.pem does not lead to the CA's root",
            "read subject and issuer of each certificate in it, in order",
        )
    now = datetime.now(timezone.utc)
    if now > leaf.not_valid_after_utc:
        raise Wrong("the certificate has expired", "which script looks after that every night?")
    if missing := work.domains - look.names(leaf):
        raise Wrong(
            f"the certificate lacks {_listed(missing)}", "names cannot be added to a certificate; what can?"
        )
    newest = work.newest_issued()
    if newest and newest.not_valid_before_utc > leaf.not_valid_before_utc:
        raise Wrong(
            f"the CA has issued a newer one since, serial {look.short_serial(newest)}, and this is"
            f" {look.short_serial(leaf)}",
            "is it in history/? certificate.pem and the others are links",
        )
    return f"serial {look.short_serial(leaf)}, its key, and {len(chain) - 1} issuer{'s' * (len(chain) > 2)}"


def cdn(work: Work) -> str:
    """07: the CDN's edge serves the newest certificate for every domain."""
    return _installed(work, "cdn")


def api_gateway(work: Work) -> str:
    """08: API Gateway's edge does."""
    return _installed(work, "apigateway")


def _installed(work: Work, section: str) -> str:
    served = work.served(section)
    if not served:
        raise NotYet(f"the settings name no domain in [{section}]")
    current = work.chain[0]
    ours = {leaf.serial_number for leaf in (*work.replaced(), current)}
    without = [domain for domain, leaf in served.items() if not leaf or leaf.serial_number not in ours]
    old = {
        domain: leaf for domain, leaf in served.items() if leaf and domain not in without and leaf != current
    }
    for domain, leaf in old.items():
        raise Wrong(
            f"{domain} serves serial {look.short_serial(leaf)}, which {look.short_serial(current)} has replaced",
            "to have a certificate is one thing; who takes it to those who serve it?",
        )
    if without:
        raise NotYet(f"{_listed(without)} {'does' if len(without) == 1 else 'do'} not serve it")
    for domain in served:
        if reason := work.why_untrusted(section, domain):
            raise Wrong(
                f"{domain} serves the certificate, but a browser objects: {reason}",
                "what does openssl s_client -showcerts show besides it?",
            )
    revoked = " (revoked since)" if work.ca.status(current) == "Revoked" else ""
    return f"{_listed(served)} serve{'s' * (len(served) == 1)} serial {look.short_serial(current)}{revoked}"


def revoked(work: Work) -> str:
    """09: the CA says of one of our certificates that it is revoked."""
    leaves = {leaf.serial_number: leaf for leaf in (*work.replaced(), work.chain[0])}.values()
    found = [look.short_serial(leaf) for leaf in leaves if work.ca.status(leaf) == "Revoked"]
    if found:
        return f"the CA says that {_listed(found)} {'is' if len(found) == 1 else 'are'} revoked"
    if work.exists("revoked.json"):
        raise Wrong(
            "revoked.json says that a certificate is revoked, but the CA does not",
            "which of the two do others ask?",
        )
    raise NotYet("the CA says that every certificate is valid")


def pfx(work: Work) -> str:
    """10: a PFX with the current certificate, its key and its issuers, that opens with the password."""
    content = work.pfx
    work.check_private("certificate.pfx")
    if not content.cert or not content.key or content.cert.certificate != work.chain[0]:
        held = look.short_serial(content.cert.certificate) if content.cert else "none"
        raise Wrong(
            f"certificate.pfx holds {held}, and the current certificate is {look.short_serial(work.chain[0])}",
            "it was packed when? Nothing repacks it by itself but one script",
        )
    return f"opens with the password: serial {look.short_serial(work.chain[0])}, its key, its issuers"


def renewed(work: Work) -> str:
    """11: it looks after the certificate: none is due, and what is configured is installed."""
    record = work.json("renewal.json")
    leaf = work.chain[0]
    if record.get("failures"):
        first, *_ = str(record.get("last_failure")).splitlines() or ["it does not say why"]
        raise Wrong(
            f"its last try failed: {first}",
            "mend the cause; it waits before it tries by itself. How is it told not to wait?",
        )
    if work.ca.status(leaf) == "Revoked":
        raise NotYet("the current certificate is revoked, so that another is due")
    missing = work.domains - look.names(leaf)
    if missing:
        raise NotYet(f"the certificate lacks {_listed(missing)}, so that another is due")
    days = (leaf.not_valid_after_utc - datetime.now(timezone.utc)).days
    kept = len(list(work.replaced()))
    return f"nothing is due: {days} days are left; {kept} certificate{'s' * (kept > 1)} kept in history/"


def changed_key(work: Work) -> str:
    """12: the account has a new key, and the old one opens nothing."""
    old = sorted((work.state / "history").glob("account-*.key"))
    if not old:
        raise NotYet("the account has its first key still")
    if work.deactivated:
        return f"{len(old)} old key{'s' * (len(old) > 1)} kept in history/"
    for path in old:
        if isinstance(work.account_of(f"history/{path.name}"), look.Account):
            raise Wrong(f"the CA still knows the old key {path.name}", "which key is in account.key?")
    if not work.account:
        raise Wrong(
            "the CA has no account for account.key", "is it the new key, or one that the CA never heard of?"
        )
    return f"account {_id(work.account.url)} has the new key, and the old one opens nothing"


def deactivated(work: Work) -> str:
    """13: the CA refuses the account."""
    noted = work.json("account.json").get("status")
    if work.deactivated:
        if noted != "deactivated":
            raise Wrong(
                f'the CA has ended the account, but account.json says "{noted}"',
                "the CA's word counts. What is next?",
            )
        return "the CA refuses the account"
    if noted == "deactivated":
        raise Wrong(
            'account.json says "deactivated", but the CA still takes the account\'s requests',
            "what the file says is a note; who decides?",
        )
    raise NotYet("the CA takes the account's requests")


STEPS: dict[str, tuple[str, Callable[[Work], str]]] = {
    "01": ("account key", account_key),
    "02": ("certificate key, CSR", request),
    "03": ("account", account),
    "04": ("order", order),
    "05": ("proof of control", proof),
    "06": ("certificate", certificate),
    "07": ("on the CDN", cdn),
    "08": ("on API Gateway", api_gateway),
    "09": ("revocation", revoked),
    "10": ("PFX for IIS", pfx),
    "11": ("renewal", renewed),
    "12": ("account key, changed", changed_key),
    "13": ("account, deactivated", deactivated),
}


def names_of(found: dict) -> set[str]:
    return {identifier["value"] for identifier in found["identifiers"]}


def _reason(work: Work, found: dict) -> str:
    """Why an order failed, from the challenge that did."""
    account = work.account
    for authorization in map(account.ask, found["authorizations"]) if account else ():
        for challenge in authorization["challenges"]:
            if "error" in challenge:
                return f": {authorization['identifier']['value']}: {challenge['error'].get('detail', '')}"
    return ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _id(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _path(url: str) -> str:
    return url.partition("://")[2].partition("/")[2]
