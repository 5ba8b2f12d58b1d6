"""Finalize the order with the CSR; download, check and keep the certificate.

Call    POST finalize, order, certificate
RFC     8555 sections 7.4, 7.4.2
Reads   state/pending/ (key, CSR, order), state/account.json; acme.ini: [acme] preferred_chain
Writes  state/certificate.key, certificate.pem, chain.pem, fullchain.pem; state/history/
Run     python 06_finalize.py
Lab     docs/labs/06.md, 15 minutes; part 5
Next    07_install_cdn.py
"""

from typing import Any

from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import serialization

from common import acme, config, jws, show, x509
from common.failure import Failure, Usage
from common.state import State

ISSUE_TIMEOUT = 300  # seconds for the CA to issue
# In the order in which they are removed. An order that outlived its key would be gone on with for the next one.
PENDING = ("pending/order.json", "pending/certificate.csr", "pending/certificate.key")


def finalize(ca: acme.Client, finalize_url: str, csr: crypto_x509.CertificateSigningRequest) -> acme.Answer:
    """Hand in the CSR: DER this time, as base64url, without PEM's first and last line (section 7.4)."""
    payload = {"csr": jws.b64url(csr.public_bytes(serialization.Encoding.DER))}
    # The answer is the order, "processing" or already "valid". It need not repeat the order's URL.
    return ca.post(finalize_url, payload)


def download_chain(
    ca: acme.Client, certificate_url: str, preferred_chain: str | None
) -> list[crypto_x509.Certificate]:
    """The certificate and its issuers, leaf first; of several chains the preferred one, else the CA's default."""
    answer = ca.post_as_get(certificate_url)
    chain = x509.split_chain(str(answer.body).encode(errors="replace"), certificate_url)
    if not preferred_chain:
        return chain
    # Section 7.4.2: other chains for the same leaf, up to other roots, are linked as "alternate".
    issuers = [x509.issuer_name(chain[-1])]
    if issuers[0] == preferred_chain:
        return chain
    for url in answer.links("alternate"):
        alternate = x509.split_chain(str(ca.post_as_get(url).body).encode(errors="replace"), url)
        issuers.append(x509.issuer_name(alternate[-1]))
        if issuers[-1] == preferred_chain:
            return alternate
    show.warn(
        f'no chain ends at "{preferred_chain}"; taking the CA\'s default. It offers: {", ".join(issuers)}'
    )
    return chain


def issued_order(
    ca: acme.Client, order_url: str, csr: crypto_x509.CertificateSigningRequest
) -> dict[str, Any]:
    """Bring the order from ready, or wherever an earlier run left it, to valid."""
    answer = ca.post_as_get(order_url)
    order = answer.object(status=str, finalize=str)
    if order["status"] == "pending":
        raise Usage(
            "the order is pending: control of the names is not yet proven", "run 05_dns_challenge.py first"
        )
    if order["status"] == "ready":
        identifiers = answer.object(identifiers=list)["identifiers"]
        ordered = {str(i.get("value")) for i in identifiers if isinstance(i, dict)}
        if ordered != set(x509.dns_names(csr)):
            raise Usage(
                f"the order is for {', '.join(sorted(ordered))}, "
                f"but the CSR for {', '.join(x509.dns_names(csr))}",
                "order the CSR's names with 04 and 05, or correct [certificate] domains and run 02",
            )
        show.step("finalize", "RFC 8555 section 7.4")
        answer = finalize(ca, order["finalize"], csr)
    if order["status"] != "invalid":
        show.step("order: processing, then valid", "RFC 8555 section 7.1.6")
        done = ("valid", "invalid")
        answer = ca.poll(order_url, lambda o: o["status"] in done, "CA to issue", ISSUE_TIMEOUT, answer)
        order = answer.object(status=str)
    if order["status"] == "invalid":
        reason = (
            acme.describe(order["error"])
            if isinstance(order.get("error"), dict)
            else "the CA gives no reason"
        )
        raise Failure(f"the order is invalid: {reason}", "run 04_new_order.py for a new order")
    return answer.object(certificate=str)


def put_in_place(state: State, key_pem: bytes, chain: list[crypto_x509.Certificate]) -> None:
    """Make key and chain the current set. The set they replace stays in history/."""
    files = {
        "certificate.key": key_pem,
        "certificate.pem": x509.certificate_pem(chain[:1]),
        "chain.pem": x509.certificate_pem(chain[1:]),
        "fullchain.pem": x509.certificate_pem(chain),
    }
    state.install_certificate(x509.serial_hex(chain[0]), files)
    for name in files:
        show.wrote(state.path(name))
    state.remove(*PENDING)


def main(settings: config.Settings, ca: acme.Client | None = None) -> None:
    state = settings.state
    begun = any(state.exists(name) for name in PENDING)
    if not begun and state.exists("certificate.pem"):
        chain = x509.split_chain(state.path("fullchain.pem").read_bytes(), state.path("fullchain.pem"))
        x509.check_dates(chain[0])
        show.kept(state.path("certificate.pem"), "no order is under way")
        show.result(state.path("fullchain.pem"))
        return

    saved = state.read_json("pending/order.json", "04_new_order.py", order_url=str)
    key_pem = state.read("pending/certificate.key", "02_create_cert_key_csr.py")
    key = x509.load_private_key(key_pem, state.path("pending/certificate.key"))
    csr_pem = state.read("pending/certificate.csr", "02_create_cert_key_csr.py")
    csr = x509.load_csr(csr_pem, state.path("pending/certificate.csr"))

    show.step("order", "RFC 8555 section 7.1.3")
    ca = ca or acme.account_client(settings)
    order = issued_order(ca, saved["order_url"], csr)

    show.step("certificate", "RFC 8555 section 7.4.2")
    chain = download_chain(ca, order["certificate"], settings.acme.preferred_chain)
    # Before anything is replaced: is it what we asked for?
    x509.check_chain(chain)
    try:
        x509.check_certificate(chain[0], key, x509.dns_names(csr))
    except Failure:
        # Asking for the same certificate again would bring the same one.
        state.remove("pending/order.json")
        raise
    leaf = chain[0]
    if len(chain) == 1 and leaf.issuer != leaf.subject:
        show.warn(
            f"the CA sent no issuer's certificate: who does not know {x509.issuer_name(leaf)} will not trust it"
        )
    show.facts(
        serial=x509.serial_hex(leaf),
        names=", ".join(x509.dns_names(leaf)),
        valid=f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        issuers=" <- ".join(x509.issuer_name(certificate) for certificate in chain),
    )
    put_in_place(state, key_pem, chain)
    if state.exists("certificate.pfx") and not settings.iis.password_file:
        show.warn("certificate.pfx holds the certificate before this one: run 10_pkcs12_iis.py")
    show.result(state.path("fullchain.pem"))
    show.next_step("07_install_cdn.py")


if __name__ == "__main__":
    config.run(main, __doc__)
