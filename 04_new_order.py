"""Order a certificate for the names in the CSR.

Call    POST newOrder
RFC     8555 section 7.4, 9773 section 5
Reads   state/pending/certificate.csr, state/account.json; acme.ini: [acme] profile
Writes  state/pending/order.json
Run     python 04_new_order.py
Lab     docs/labs/04.md, 15 minutes; part 5
Next    05_dns_challenge.py
"""

from typing import Any
from urllib.parse import urlsplit

from common import acme, config, show, x509
from common.failure import Usage
from common.state import State

USABLE = ("pending", "ready", "processing", "valid")  # section 7.1.6; "invalid" is the one status that is not
# What CAs answer when they do not like what an order says it replaces; Pebble calls an unknown one its own fault.
REPLACES_REFUSED = ("alreadyReplaced", "malformed", "unauthorized", "serverInternal")


def new_order(
    ca: acme.Client, domains: list[str], profile: str | None = None, replaces: str | None = None
) -> acme.Answer:
    """Ask for a certificate. The order's URL is in the answer's Location, and nowhere else: keep it.

    replaces: the identifier of the certificate that this one will replace (RFC 9773 sections 4.1 and 5)
    """
    payload: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name} for name in domains]}
    if profile:
        payload["profile"] = profile
    if replaces:
        payload["replaces"] = replaces
    try:
        return ca.post(ca.url("newOrder"), payload)
    except acme.Problem as problem:
        # An order may replace a certificate that no other order has replaced (RFC 9773 section 5). If this CA sees
        # it otherwise, the certificate is needed all the same.
        if not replaces or problem.type not in REPLACES_REFUSED:
            raise
        show.warn(f"{problem.type}: ordered again without saying what it replaces")
        return new_order(ca, domains, profile)


def replaced_certificate(ca: acme.Client, state: State, domains: list[str]) -> str | None:
    """The identifier of the current certificate, where the CA wants to hear it and a name is the same."""
    if "renewalInfo" not in ca.directory or not state.exists("certificate.pem"):
        return None
    path = state.path("certificate.pem")
    leaf = x509.split_chain(path.read_bytes(), path)[0]
    if not set(x509.dns_names(leaf)) & set(domains):
        return None
    try:
        return x509.certificate_id(leaf)
    except ValueError:
        return None


def check_profile(ca: acme.Client, profile: str | None) -> None:
    """Usage unless the directory offers this certificate profile (draft-ietf-acme-profiles)."""
    profiles = acme.meta(ca.directory, "profiles")
    offered = profiles if isinstance(profiles, dict) else {}
    if offered:
        show.facts(profiles="\n".join(f"{name}: {description}" for name, description in offered.items()))
    if profile and profile not in offered:
        offers = f"it offers {', '.join(offered)}" if offered else "it offers no profiles"
        raise Usage(
            f"[acme] profile: this CA has no profile {profile}; {offers}",
            "correct [acme] profile, or take it out",
        )


def host_of(url: str) -> str:
    """The host and port of an address; nothing for what is no address."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def live_order(ca: acme.Client, saved: dict[str, Any], domains: list[str]) -> dict[str, Any] | None:
    """The order of an earlier run, when the CA says that it can still be used for the same names."""
    try:
        order = ca.post_as_get(saved["order_url"]).object(status=str, identifiers=list)
    except acme.Unreachable as failure:
        # The CA answers, or we would not be here. An address elsewhere that does not answer is of no use.
        if host_of(saved["order_url"]) == host_of(ca.url("newOrder")):
            raise
        reason = failure.what
    except acme.Problem as problem:
        # The CA has too much to do: then the order may still be there.
        if problem.status == 429 or problem.status >= 500:
            raise
        # Gone (404), or another account's (403): then it is of no use, and that is all we wanted to know.
        reason = problem.what
    else:
        named = {str(i.get("value")) for i in order["identifiers"] if isinstance(i, dict)}
        return order if named == set(domains) and order["status"] in USABLE else None
    show.facts(saved=f"the order of an earlier run cannot be had any more: {reason}")
    return None


def main(settings: config.Settings, ca: acme.Client | None = None) -> None:
    state = settings.state
    csr_path = state.path("pending/certificate.csr")
    csr = x509.load_csr(state.read("pending/certificate.csr", "02_create_cert_key_csr.py"), csr_path)
    domains = x509.dns_names(csr)
    ca = ca or acme.account_client(settings)
    check_profile(ca, settings.acme.profile)

    if state.exists("pending/order.json"):
        show.step("the order of an earlier run", "RFC 8555 section 7.1.3")
        saved = state.read_json("pending/order.json", "04_new_order.py", order_url=str)
        if order := live_order(ca, saved, domains):
            # A CA counts orders. One that is begun is worth going on with.
            show.wrote(
                state.write_json("pending/order.json", {"order_url": saved["order_url"], "order": order})
            )
            show.facts(resumed=f"status {order['status']}, expires {order.get('expires')}")
            show.result(saved["order_url"])
            show.next_step("05_dns_challenge.py" if order["status"] == "pending" else "06_finalize.py")
            return

    show.step("newOrder", "RFC 8555 section 7.4")
    answer = new_order(ca, domains, settings.acme.profile, replaced_certificate(ca, state, domains))
    # Before a look at the rest, of which anything may be wrong: with its URL the order can be gone on with.
    show.wrote(state.write_json("pending/order.json", {"order_url": answer.location, "order": answer.body}))
    order = answer.object(status=str)
    show.result(answer.location)
    # "ready" at once means that the CA remembers earlier proofs of control and wants no new ones.
    show.next_step("05_dns_challenge.py" if order["status"] == "pending" else "06_finalize.py")


if __name__ == "__main__":
    config.run(main, __doc__)
