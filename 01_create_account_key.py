"""Create the account key, which signs every request to the CA.

Call    none, a local step
RFC     8555 section 6.2, 7638
Reads   acme.ini: [account] key_type
Writes  state/account.key
Run     python 01_create_account_key.py
Lab     docs/labs/01.md, 5 minutes; part 2
Next    02_create_cert_key_csr.py
"""

from pathlib import Path

from common import config, jws, show, x509


def create_account_key(key_type: str) -> bytes:
    """A new private key as PEM. key_type: ec256, ec384, rsa2048, rsa3072 or rsa4096."""
    key = x509.new_private_key(key_type)
    return x509.private_key_pem(key)


def describe(pem: bytes, file: Path) -> None:
    """Show the public half of the key, as the CA will see it."""
    key = x509.load_private_key(pem, file)
    # The JWK goes into the first request; from then on the account URL stands for it.
    # In step 05 the thumbprint ties each proof of control to this key.
    show.facts(algorithm=jws.algorithm(key), JWK=jws.jwk(key), thumbprint=jws.thumbprint(key))


def main(settings: config.Settings) -> None:
    state = settings.state
    show.step("account key", "RFC 8555 section 6.2, RFC 7638")

    path = state.path("account.key")
    # Whoever loses this key loses the account, so nothing here ever overwrites it.
    if not state.exists("account.key") and state.create(
        "account.key", create_account_key(settings.account.key_type)
    ):
        show.wrote(path)
    else:
        show.kept(path, "there is an account key already")
    describe(path.read_bytes(), path)
    show.result(path)
    show.next_step("02_create_cert_key_csr.py")


if __name__ == "__main__":
    config.run(main, __doc__)
