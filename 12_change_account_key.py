"""Replace the account's key with a new one.

Call    POST keyChange
RFC     8555 section 7.3.5
Reads   state/account.key, state/account.json; acme.ini: [account] key_type
Writes  state/account.key; the old one to state/history/
Run     python 12_change_account_key.py
Lab     docs/labs/12.md, 15 minutes; not in the articles
Next    03_new_account.py --info
"""

from typing import Any

from common import acme, config, jws, show, x509

NEW_KEY = "pending/account.key"
KEY_REFUSED = ("badPublicKey", "badSignatureAlgorithm")  # RFC 8555 section 6.7


def change_key(ca: acme.Client, new_key: jws.PrivateKey) -> None:
    """Tell the CA the account's new key: a JWS by the new key inside a JWS by the old one.

    So the CA knows that whoever asks holds both: nobody can lay the account on a key that is not theirs.
    """
    url = ca.url("keyChange")
    # The inner JWS carries no nonce; the outer one has it (section 7.3.5).
    inner_header = {"alg": jws.algorithm(new_key), "jwk": jws.jwk(new_key), "url": url}
    inner_payload = {"account": ca.kid, "oldKey": jws.jwk(ca.key)}
    show.facts(inner={"protected": inner_header, "payload": inner_payload})
    payload: dict[str, Any] = jws.sign(new_key, inner_header, inner_payload)
    ca.post(url, payload)


def is_the_accounts(settings: config.Settings, key: jws.PrivateKey, account_url: str) -> bool:
    """Ask the CA whether an account has this key (section 7.3.1), and whether it is ours."""
    ca = acme.connect(settings, key)
    try:
        return ca.post(ca.url("newAccount"), {"onlyReturnExisting": True}).location == account_url
    except acme.Problem as problem:
        if problem.type != "accountDoesNotExist":
            raise
        return False


def main(settings: config.Settings) -> None:
    state = settings.state
    old_pem = state.read("account.key", "01_create_account_key.py")
    old_key = x509.load_private_key(old_pem, state.path("account.key"))
    account = acme.load_account(settings)

    if state.exists(NEW_KEY):
        # An earlier run broke off. Only the CA knows whether it heard of the new key.
        show.step("the key change of an earlier run", "RFC 8555 section 7.3.1")
        new_pem = state.path(NEW_KEY).read_bytes()
        new_key = x509.load_private_key(new_pem, state.path(NEW_KEY))
        changed = is_the_accounts(settings, new_key, account["account_url"])
        show.facts(earlier="the CA has the new key" if changed else "the CA has the old key still")
    else:
        # Asked first, so that a CA without keyChange leaves nothing begun.
        acme.connect(settings, old_key).url("keyChange")
        new_key = x509.new_private_key(settings.account.key_type)
        new_pem = x509.private_key_pem(new_key)
        # On disk before the CA hears of it: whatever happens then, the account's key is never lost.
        state.write(NEW_KEY, new_pem)
        show.wrote(state.path(NEW_KEY))
        changed = False

    if not changed:
        show.step("keyChange", "RFC 8555 section 7.3.5")
        try:
            change_key(acme.connect(settings, old_key, account["account_url"]), new_key)
        except acme.Problem as problem:
            if problem.type in KEY_REFUSED:
                # This key the CA will never take, so it is nobody's: the next run makes another.
                state.remove(NEW_KEY)
            raise

    if old_pem != new_pem:
        show.wrote(state.write(f"history/account-{jws.thumbprint(old_key)}.key", old_pem))
        show.wrote(state.write("account.key", new_pem))
    state.remove(NEW_KEY)
    show.facts(thumbprint=jws.thumbprint(new_key))
    show.result(account["account_url"])
    show.next_step("03_new_account.py --info")


if __name__ == "__main__":
    config.run(main, __doc__)
