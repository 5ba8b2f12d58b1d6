"""Create the certificate's key and its signing request (CSR).

Call    none, a local step
RFC     2986, 8555 sections 7.4 and 11.1
Reads   acme.ini: [certificate] domains, key_type; state/account.key
Writes  state/pending/certificate.key, state/pending/certificate.csr
Run     python 02_create_cert_key_csr.py
Lab     docs/labs/02.md, 10 minutes; part 2
Next    03_new_account.py
"""

from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes, serialization

from common import config, names, show, x509
from common.failure import Usage

MOST_NAMES = 100  # Let's Encrypt's limit for one certificate


def create_csr(key: x509.PrivateKey, domains: list[str]) -> bytes:
    """A certificate signing request as PEM, for these names, signed with the certificate's own key.

    Errors: ValueError, with the name in its message, for what cannot be in a certificate.
    """
    ascii_names = list(dict.fromkeys(names.dns_name(domain) for domain in domains))
    if len(ascii_names) > MOST_NAMES:
        raise ValueError(
            f"{ascii_names[MOST_NAMES]}: is name {MOST_NAMES + 1}; a certificate holds {MOST_NAMES}"
        )
    # The subject stays empty: names count only in the subject alternative name extension, where all of them are.
    # (A common name is optional since RFC 2818, holds 64 characters at most, and CAs are dropping it.)
    builder = crypto_x509.CertificateSigningRequestBuilder(subject_name=crypto_x509.Name([]))
    alternative_names = crypto_x509.SubjectAlternativeName([crypto_x509.DNSName(n) for n in ascii_names])
    csr = builder.add_extension(alternative_names, critical=False).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def main(settings: config.Settings) -> None:
    state = settings.state
    domains = settings.need("certificate", "domains")
    account_path = state.path("account.key")
    account_key = x509.load_private_key(state.read("account.key", "01_create_account_key.py"), account_path)
    show.step("certificate key and CSR", "RFC 8555 section 7.4, RFC 2986")

    key_path, csr_path = state.path("pending/certificate.key"), state.path("pending/certificate.csr")
    if state.exists("fullchain.pem") and state.exists("pending/certificate.key"):
        pending_key = x509.load_private_key(key_path.read_bytes(), key_path)
        current = x509.split_chain(state.path("fullchain.pem").read_bytes(), state.path("fullchain.pem"))[0]
        if x509.public_key_der(pending_key) == x509.public_key_der(current):
            # 06_finalize.py was interrupted when all was in place but this. The key has its certificate.
            state.remove("pending/order.json", "pending/certificate.csr", "pending/certificate.key")

    if state.exists("pending/certificate.key"):
        key = x509.load_private_key(key_path.read_bytes(), key_path)
        show.kept(key_path, "no certificate has been issued for it yet")
    else:
        # A new key for each certificate: what was stolen with the last one is worth nothing with the next.
        key = x509.new_private_key(settings.certificate.key_type)
        state.write("pending/certificate.key", x509.private_key_pem(key))
        show.wrote(key_path)

    # RFC 8555 section 11.1: a key that signs for the account must not be shown to the world in a certificate, too.
    if x509.public_key_der(key) == x509.public_key_der(account_key):
        raise Usage(f"{key_path} is the account's key", "move it away; a certificate needs a key of its own")

    if x509.key_type(key) != settings.certificate.key_type:
        show.warn(
            f"{key_path} is {x509.key_type(key)}, and [certificate] key_type is "
            f"{settings.certificate.key_type}: for another key, move it and pending/order.json away"
        )

    try:
        state.write("pending/certificate.csr", create_csr(key, list(domains)))
    except ValueError as error:
        raise Usage(
            f"{settings.file}: [certificate] domains: {error}", f"correct it in {settings.file}"
        ) from None
    show.wrote(csr_path)
    show.facts(names=", ".join(domains))
    show.result(csr_path)
    show.next_step("03_new_account.py")


if __name__ == "__main__":
    config.run(main, __doc__)
