"""The exercises of lab/exercises, each with its judge.

A *predict* is judged by what has become of the learner's own world since; it wants an answer, and tells no other. A
*break* is judged by two things: the scripts' trace shows that it was broken, and the world shows that it is mended.
"""

from collections.abc import Callable, Iterable
from typing import Any

from lab import LabError, look
from lab.check import steps
from lab.check.steps import Step
from lab.check.work import NotYet, Work, Wrong

# The hosts that 02-predict asks about, and the domains of 07-predict.
HOSTS = (
    "example.test",
    "www.example.test",
    "a.b.example.test",
    "shop.workshop.com.test",
    "workshop.com.test",
)
MAYBE_ON_THE_CDN = ("www.example.test", "static.example.test", "api.example.test", "shop.workshop.com.test")


def look_at(work: Work, name: str, answer: Iterable[str]) -> Step:
    """An exercise and what became of it. answer: what the learner predicts, in any order"""
    words = {word.lower() for text in answer for word in text.replace(",", " ").split()}
    number, _, kind = name.partition("-")
    if number not in EXERCISES or kind not in ("predict", "break"):
        nearest = f"{number.zfill(2)}-predict and {number.zfill(2)}-break"
        they = nearest if number.zfill(2) in EXERCISES else "01-predict, 01-break, … to 13-break"
        raise LabError(f"there is no exercise {name}; there are {they}", exit_code=2)
    title, _ = steps.STEPS[number]
    predict, broken = EXERCISES[number]
    if kind == "predict":
        return steps.judged(name, title, lambda: _predicted(words, *predict(work)))
    return steps.judged(name, title, lambda: broken(work))


def _predicted(words: set[str], truth: set[str], why: str) -> str:
    """Judge an answer by the truth; why: one sentence, told with the right answer only."""
    if not words:
        raise NotYet("what do you predict? Write your answer behind the exercise's name")
    if words != {word.lower() for word in truth}:
        raise Wrong(
            f"it is not: {' '.join(sorted(words))}",
            "look at what the script printed and at what it made, and answer again, as often as you like",
        )
    return f"right: {why}"


def _failed(work: Work, number: str, words: str) -> None:
    """NotYet unless a script has failed, at any time, with these words in what it said."""
    for line in work.trace():
        by_it = line.get("kind") == "failure" and str(line.get("script")).startswith(number)
        if by_it and words in str(line.get("what")):
            return
    raise NotYet(
        f"{number} has not failed yet in the way that the exercise wants: has it met what was broken?"
    )


def _exchanges(work: Work, number: str, kind: str) -> list[dict[str, Any]]:
    """What a script has asked, and was answered."""
    return [
        line
        for line in work.trace()
        if line.get("kind") == kind and str(line.get("script")).startswith(number)
    ]


# 01: the account's key.


def thumbprint_length(work: Work) -> tuple[set[str], str]:
    length = len(look.thumbprint(work.private_key("account.key")))
    return {str(length)}, "32 octets are 256 bits; at 6 bits a character, 42 are full and one has the rest"


def key_in_half(work: Work) -> str:
    _failed(work, "01", "account.key")
    steps.account_key(work)
    return "01 writes over no account key, not even over half of one; you made way for a new one"


# 02: the certificate's key and request.


def hosts_covered(work: Work) -> tuple[set[str], str]:
    names = look.names(work.chain[0]) if work.has_certificate else _csr_names(work)
    covered = {host for host in HOSTS if host in names or f"*.{host.partition('.')[2]}" in names}
    return (
        covered,
        "a name stands for itself, and * for one label: no more, and no less (RFC 6125 section 6.4.3)",
    )


def _csr_names(work: Work) -> set[str]:
    steps.request(work)
    return look.names(work.csr)


def one_key_for_both(work: Work) -> str:
    _failed(work, "02", "is the account's key")
    steps.request(work)
    return "02 makes no request with the account's key, and the certificate has a key of its own again"


# 03: the account.


def second_new_account(work: Work) -> tuple[set[str], str]:
    asked = [
        line["status"].partition(" ")[0]
        for line in _exchanges(work, "03", "acme")
        if isinstance(line["sent"].get("payload"), dict) and "termsOfServiceAgreed" in line["sent"]["payload"]
    ]
    answers = [status for status in asked if status.startswith("2")]
    if len(answers) < 2:
        raise NotYet("03 has not been run twice yet")
    return {
        answers[-1]
    }, "there is one account to a key; who asks for it again is told its URL (RFC 8555 section 7.3)"


def another_key(work: Work) -> str:
    _failed(work, "03", "accountDoesNotExist")
    steps.account(work)
    return "no account with another key; and with its own key, the account is there again"


# 04: the order.


def authorizations(work: Work) -> tuple[set[str], str]:
    count = len(_an_order(work)["authorizations"])
    return {str(count)}, "each name is proven on its own, a wildcard too"


def _an_order(work: Work) -> dict[str, Any]:
    found = [order for order in work.orders if steps.names_of(order) == work.domains]
    if not found:
        raise NotYet("the CA has no order for the names in lab.ini yet")
    return found[-1]


def lost_order(work: Work) -> str:
    _failed(work, "05", "order.json is missing")
    steps.order(work)
    if len(work.orders) < 2:
        raise NotYet("the CA has one order of yours: make another")
    return f"the CA has {len(work.orders)} orders of yours. What it told once, in Location, you had to keep"


# 05: the proof.


def challenge_places(work: Work) -> tuple[set[str], str]:
    steps.proof(work)
    account = work.account
    urls = _an_order(work)["authorizations"]
    names = {account.ask(url)["identifier"]["value"] for url in urls} if account else set()
    return {str(len(names))}, "a wildcard is proven at the name below it, so that two values share one place"


def looked_too_early(work: Work) -> str:
    _failed(work, "05", "the order is invalid")
    steps.order(work)
    return f"an order that has failed stays so; the next one: {steps.proof(work)}"


# 06: the certificate.


def certificates_in_the_chain(work: Work) -> tuple[set[str], str]:
    return {
        str(len(work.chain))
    }, "yours and who issued it; the root is not sent, because each browser has its own copy"


def another_request(work: Work) -> str:
    _failed(work, "06", "but the CSR for")
    return f"the CSR must ask for just what was ordered; it does now: {steps.certificate(work)}"


# 07 and 08: installed.


def served_by_the_cdn(work: Work) -> tuple[set[str], str]:
    steps.cdn(work)
    edge = work.setting("cdn", "verify_at")
    served = {name for name in MAYBE_ON_THE_CDN if work.serves(edge, name) == work.chain[0]}
    return served, "a certificate goes where somebody takes it, and to no other domain that it has in it"


def nobodys_domain(work: Work) -> str:
    _failed(work, "07", "nowhere.example.test")
    if "nowhere.example.test" in work.listed("cdn", "domains"):
        raise NotYet("it is broken: nowhere.example.test is in [cdn] domains still")
    return f"one that fails keeps no other from it: {steps.cdn(work)}"


def hidden_member(work: Work) -> tuple[set[str], str]:
    answers = [line["received"].get("body") for line in _exchanges(work, "08", "alibaba")]
    hidden = {
        key
        for body in answers
        if isinstance(body, dict)
        for key, value in body.items()
        if value == "(secret)"
    }
    if not hidden:
        raise NotYet("08 has read no certificate back yet")
    return hidden, "the API hands the private key out to everyone who may describe the domain: mind who may"


def wrong_secret(work: Work) -> str:
    _failed(work, "08", "SignatureDoesNotMatch")
    if not _exchanges(work, "08", "alibaba")[-1]["status"].startswith("200"):
        raise NotYet("it is broken: the last call of 08 was refused still")
    return f"the secret itself is never sent, only what it signs: {steps.api_gateway(work)}"


# 09: revoked.


def served_although_revoked(work: Work) -> tuple[set[str], str]:
    served = [leaf for leaf in work.served("cdn").values() if leaf]
    if not any(work.ca.status(leaf) == "Revoked" for leaf in served):
        raise NotYet("no domain on the CDN serves a certificate that is revoked")
    return {
        "yes"
    }, "the CA tells those who ask it; the server is not told, and serves it until somebody replaces it"


def revoked_without_account(work: Work) -> str:
    for line in _exchanges(work, "09", "acme"):
        header, payload = line["sent"].get("protected") or {}, line["sent"].get("payload")
        heard = line["status"].startswith("200") or "alreadyRevoked" in str(line["received"])
        if "jwk" in header and isinstance(payload, dict) and "certificate" in payload and heard:
            break
    else:
        raise NotYet("nothing was broken yet: 09 has not been heard by the CA without the account")
    steps.account(work)
    return "whoever holds the certificate's key may revoke it, with no account at all (RFC 8555 section 7.6)"


# 10: PFX.


def certificates_in_the_pfx(work: Work) -> tuple[set[str], str]:
    steps.pfx(work)
    return {str(1 + len(work.pfx.additional_certs))}, "the whole chain, and the one private key"


def not_its_key(work: Work) -> str:
    _failed(work, "10", "is not the key of")
    steps.certificate(work)
    return f"a certificate is worth nothing without its own key: {steps.pfx(work)}"


# 11: renewed.


def sets_in_history(work: Work) -> tuple[set[str], str]:
    steps.renewed(work)
    return {
        str(len(work.replaced()))
    }, "one for each certificate that was issued; the second run had nothing to do"


def failing_install(work: Work) -> str:
    _failed(work, "11", "later.example.test")
    if "later.example.test" in work.listed("cdn", "domains"):
        raise NotYet("it is broken: later.example.test is in [cdn] domains still")
    return f"it waits after a failure, ever longer, and goes on when told to: {steps.renewed(work)}"


# 12: the account's key, changed.


def changed_with_the_key(work: Work) -> tuple[set[str], str]:
    steps.changed_key(work)
    # Whose URL the CA would say is another one, that is wrong there.
    steps.account(work)
    return {
        "thumbprint"
    }, "the account is the same, under the same URL; only the key that opens it is another"


def half_a_key_change(work: Work) -> str:
    for line in _exchanges(work, "12", "acme"):
        payload = line["sent"].get("payload")
        if isinstance(payload, dict) and "onlyReturnExisting" in payload and line["status"].startswith("200"):
            break
    else:
        raise NotYet("nothing was broken yet: 12 has not had to ask which key the CA has")
    steps.account_key(work)
    return f"only the CA knew, and 12 asked it: {steps.changed_key(work)}"


# 13: the account, deactivated.


def after_the_account(work: Work) -> tuple[set[str], str]:
    steps.deactivated(work)
    return {work.ca.status(work.chain[0])}, "a certificate outlives the account that ordered it"


def ordered_without_account(work: Work) -> str:
    _failed(work, "04", "unauthorized")
    steps.deactivated(work)
    return "whatever the note says, the CA takes nothing from this account any more, and there is no way back"


Predict = Callable[[Work], tuple[set[str], str]]
Break = Callable[[Work], str]

EXERCISES: dict[str, tuple[Predict, Break]] = {
    "01": (thumbprint_length, key_in_half),
    "02": (hosts_covered, one_key_for_both),
    "03": (second_new_account, another_key),
    "04": (authorizations, lost_order),
    "05": (challenge_places, looked_too_early),
    "06": (certificates_in_the_chain, another_request),
    "07": (served_by_the_cdn, nobodys_domain),
    "08": (hidden_member, wrong_secret),
    "09": (served_although_revoked, revoked_without_account),
    "10": (certificates_in_the_pfx, not_its_key),
    "11": (sets_in_history, failing_install),
    "12": (changed_with_the_key, half_a_key_change),
    "13": (after_the_account, ordered_without_account),
}
