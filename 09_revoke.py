"""Revoke a certificate: tell the world to trust it no longer.

Call    POST revokeCert
RFC     8555 section 7.6, 5280 section 5.3.1
Reads   state/certificate.pem (or the one named), state/account.json or state/certificate.key
Writes  state/revoked.json
Run     python 09_revoke.py --reason superseded
Lab     docs/labs/09.md, 10 minutes; promised in part 1
Next    02_create_cert_key_csr.py for another certificate
"""

import argparse
from pathlib import Path
from typing import Any

from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import serialization

from common import acme, config, jws, show, x509
from common.failure import Usage

# RFC 5280 section 5.3.1, those that a subscriber may give.
REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
}


def revoke(
    ca: acme.Client, leaf: crypto_x509.Certificate, reason: int, key: jws.PrivateKey | None = None
) -> bool:
    """Revoke a certificate; False when it was revoked already.

    reason: a code of RFC 5280 section 5.3.1; 0, unspecified, is said by saying nothing
    key: the certificate's own key, to sign with in place of the account's: who holds it may revoke, without account
    """
    payload: dict[str, Any] = {"certificate": jws.b64url(leaf.public_bytes(serialization.Encoding.DER))}
    if reason:
        payload["reason"] = reason
    try:
        ca.post(ca.url("revokeCert"), payload, key=key)
    except acme.Problem as problem:
        if problem.type != "alreadyRevoked":
            raise
        return False
    return True


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("certificate", nargs="?", type=Path, help="a PEM file; else state/certificate.pem")
    parser.add_argument(
        "--reason", choices=REASONS, default="unspecified", help="why (RFC 5280 section 5.3.1)"
    )
    parser.add_argument(
        "--with-certificate-key",
        action="store_true",
        help="sign with the certificate's key, the file of the same name ending in .key; needs no account",
    )


def main(
    settings: config.Settings,
    certificate: Path | None = None,
    reason: str = "unspecified",
    with_certificate_key: bool = False,
) -> None:
    state = settings.state
    path = certificate or state.path("certificate.pem")
    if not path.is_file():
        raise Usage(f"{path} is missing", "name the certificate's PEM file, or run 06_finalize.py first")
    leaf = x509.split_chain(path.read_bytes(), path)[0]

    key = None
    if with_certificate_key:
        key_path = (
            path.with_name("certificate.key") if path.name == "fullchain.pem" else path.with_suffix(".key")
        )
        if not key_path.is_file():
            raise Usage(
                f"{key_path} is missing", "put the certificate's key there, or revoke with the account's"
            )
        key = x509.load_private_key(key_path.read_bytes(), key_path)
        if x509.public_key_der(key) != x509.public_key_der(leaf):
            raise Usage(f"{key_path} is not the key of {path}", "name the certificate that it belongs to")
        ca = acme.connect(settings, key)
    elif not state.exists("account.key"):
        raise Usage(
            f"{state.path('account.key')} is missing",
            "restore it, or revoke with the certificate's own key: --with-certificate-key",
        )
    else:
        ca = acme.account_client(settings)

    show.step("revokeCert", "RFC 8555 section 7.6")
    serial = x509.serial_hex(leaf)
    show.facts(serial=serial, names=", ".join(x509.dns_names(leaf)))
    if revoke(ca, leaf, REASONS[reason], key):
        show.facts(revoked=f"reason {reason}")
    else:
        show.facts(revoked="it was already")
    current = state.path("certificate.pem")
    if current.exists() and x509.split_chain(current.read_bytes(), current)[0] == leaf:
        # 11_renew.py sees by this that the certificate needs a successor now.
        state.write_json("revoked.json", {"serial": serial, "reason": reason})
    show.result(serial)
    show.next_step("02_create_cert_key_csr.py, for another certificate")


if __name__ == "__main__":
    config.run(main, __doc__, add_options)
