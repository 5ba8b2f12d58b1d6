"""Create, or find, the ACME account with the first signed request.

Call    GET directory, HEAD newNonce, POST newAccount, POST account
RFC     8555 sections 7.1.1, 7.2, 7.3
Reads   acme.ini: [acme] directory, agree_to_terms_of_service, contact, eab_*; state/account.key
Writes  state/account.json
Run     python 03_new_account.py
Lab     docs/labs/03.md, 40 minutes; parts 3 and 4
Next    04_new_order.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import acme, config, jws, show
from common.failure import Usage


def show_directory(ca: acme.Client) -> None:
    """What the CA offers, entry by entry. A GET, and the only address one has to know (section 7.1.1)."""
    meanings = {
        "newNonce": "gives a number that may be used once, against replayed requests",
        "newAccount": "makes an account, or finds the one that a key has",
        "newOrder": "asks for a certificate",
        "newAuthz": "proves control of a name before any order (few CAs offer it)",
        "revokeCert": "revokes a certificate",
        "keyChange": "replaces the account's key",
        "renewalInfo": "tells when to renew a certificate (RFC 9773)",
        "meta": "about the CA",
    }
    for entry, value in ca.directory.items():
        # CAs add an entry with a random name, so that clients learn to pass over what they do not know.
        meaning = meanings.get(entry, "unknown, and so ignored")
        show.facts(**{entry: f"{meaning}\n{value}" if isinstance(value, str) else meaning})


def check_terms(ca: acme.Client, agreed: bool, settings_file: Path) -> None:
    """A person agrees to the CA's terms, in the settings; a program must not do it by itself (section 7.3)."""
    terms = acme.meta(ca.directory, "termsOfService")
    show.facts(terms=terms or "none")
    if terms and not agreed:
        raise Usage(
            f"the CA's terms of service are not agreed to: {terms}",
            f"read them; then set [acme] agree_to_terms_of_service = yes in {settings_file}",
        )


def external_account_binding(
    key: jws.PrivateKey, url: str, key_id: str, hmac_key_file: Path
) -> dict[str, str]:
    """The account key, signed with the key that a commercial CA gave its customer (section 7.3.4).

    key_id, hmac_key_file: from the CA; the file holds the HMAC key as base64url text
    """
    try:
        text = hmac_key_file.read_text(encoding="ascii").strip()
        hmac_key = jws.b64url_decode(show.secret(text).rstrip("="))
        if not hmac_key:
            raise ValueError
    except (OSError, ValueError):
        # Not chained, and not quoted: the cause could hold the key.
        raise Usage(
            f"[acme] eab_hmac_key_file: {hmac_key_file} has no base64url key", "save the CA's key there"
        ) from None
    return jws.sign_hmac(hmac_key, {"alg": "HS256", "kid": key_id, "url": url}, jws.jwk(key))


def new_account(ca: acme.Client, payload: dict[str, Any]) -> acme.Answer:
    """The first signed request, built in the open. Later scripts leave these steps to ca.post()."""
    url = ca.url("newAccount")

    def build(nonce: str) -> tuple[dict[str, str], dict[str, Any]]:
        # 1. The protected header: how it is signed, by whom, for the first time, to which address.
        protected = {"alg": jws.algorithm(ca.key), "jwk": jws.jwk(ca.key), "nonce": nonce, "url": url}
        # 2. Header and payload become JSON, and the JSON base64url.
        protected_text = jws.b64url(json.dumps(protected).encode())
        payload_text = jws.b64url(json.dumps(payload).encode())
        # 3. The signature is over both, with a dot between (RFC 7515 section 5.1).
        signature = jws.signature(ca.key, f"{protected_text}.{payload_text}".encode())
        # 4. The three together are the body of the POST (RFC 7515 section 7.2.2).
        signed = {"protected": protected_text, "payload": payload_text, "signature": jws.b64url(signature)}
        return signed, protected

    # The nonce is asked for here; send() builds anew with another one if the CA does not like it.
    return ca.send(url, build, payload)


def account_payload(ca: acme.Client, settings: config.Settings, only_find: bool) -> dict[str, Any]:
    """What newAccount is told (section 7.3)."""
    if only_find:
        return {"onlyReturnExisting": True}
    payload: dict[str, Any] = {"termsOfServiceAgreed": True}
    if settings.acme.contact:
        payload["contact"] = list(settings.acme.contact)
    if settings.acme.eab_key_id:
        key_file = settings.need("acme", "eab_hmac_key_file")
        url = ca.url("newAccount")
        payload["externalAccountBinding"] = external_account_binding(
            ca.key, url, settings.acme.eab_key_id, key_file
        )
    return payload


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--find", action="store_true", help="only find the account that this key has; make none"
    )
    parser.add_argument("--info", action="store_true", help="only read the account back from the CA")


def main(settings: config.Settings, find: bool = False, info: bool = False) -> None:
    state = settings.state
    key = acme.load_account_key(settings)
    account = acme.load_account(settings) if info or state.exists("account.json") else {}

    show.step("directory", "RFC 8555 section 7.1.1")
    ca = acme.connect(settings, key, brief=False)
    show_directory(ca)

    if not info:
        show.step("terms of service", "RFC 8555 section 7.3")
        check_terms(ca, settings.acme.agree_to_terms_of_service or find, settings.file)

        show.step("newNonce", "RFC 8555 section 7.2")
        ca.fetch_nonce()

        show.step("newAccount", "RFC 8555 section 7.3")
        payload = account_payload(ca, settings, find)
        answer = new_account(ca, payload)
        show.facts(account="a new one" if answer.status == 201 else "the one that this key already had")
        # This URL is the "kid" that says, from now on, who signs; the key itself is sent no more.
        account |= {"account_url": answer.location, "directory": settings.acme.directory}
        if answer.status == 201:
            account["contact"] = payload.get("contact", [])
        state.write_json("account.json", account)

    ca.kid = account["account_url"]
    contact = list(settings.acme.contact)
    # The CA need not repeat contacts (Let's Encrypt does not keep them), so compare with what we last told it.
    if contact != account.get("contact", []) and not (info or find):
        show.step("account update", "RFC 8555 section 7.3.2")
        ca.post(ca.kid, {"contact": contact})
        account["contact"] = contact

    show.step("account, read back with a POST-as-GET", "RFC 8555 sections 6.3, 7.1.2")
    account["status"] = ca.post_as_get(ca.kid).object(status=str)["status"]
    show.facts(status=account["status"])
    show.wrote(state.write_json("account.json", account))
    show.result(ca.kid)
    show.next_step("04_new_order.py")


if __name__ == "__main__":
    config.run(main, __doc__, add_options)
