"""What installing on any service shares: the certificate to install, and proof that a server serves it."""

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography import x509 as crypto_x509

from common import show, x509
from common.failure import Failure, Usage
from common.state import State

SERVED_TIMEOUT = 300  # seconds for a service to bring a certificate to its edges


@dataclass(frozen=True)
class KeyPair:
    """A certificate chain, leaf first, with its private key, in the PEM forms that Alibaba Cloud wants."""

    chain: list[crypto_x509.Certificate]
    chain_pem: str
    private_key_pem: str

    @property
    def leaf(self) -> crypto_x509.Certificate:
        return self.chain[0]

    def is_in(self, pem: str, source: str) -> bool:
        """Whether a service's PEM begins with this certificate; what cannot be read is another one."""
        try:
            return x509.split_chain(pem.encode(errors="replace"), source)[0] == self.leaf
        except Failure:
            return False

    def name_for(self, domain: str) -> str:
        """A name for this certificate on this domain: the same every time, and no other's.

        It is legal for each service: a letter first, letters, digits and "_", 50 characters at most.
        """
        # A serial has 40 hex digits at most (RFC 5280 section 4.1.2.2).
        return f"acme_{x509.serial_hex(self.leaf)[:40]}_{zlib.crc32(domain.encode()) & 0xFFFF:04x}"


def load_key_pair(state: State, domains: Iterable[str]) -> KeyPair:
    """The current certificate and key; Usage unless they match, are valid now, and cover all the domains."""
    chain_path, key_path = state.path("fullchain.pem"), state.path("certificate.key")
    chain = x509.split_chain(state.read("fullchain.pem", "06_finalize.py"), chain_path)
    key = x509.load_private_key(state.read("certificate.key", "06_finalize.py"), key_path)
    if x509.public_key_der(chain[0]) != x509.public_key_der(key):
        raise Usage(
            f"{key_path} is not the key of {chain_path}",
            "restore both from history/, or get new ones: 02, 04, 05, 06",
        )
    try:
        x509.check_dates(chain[0])
    except Failure as failure:
        raise Usage(failure.what, failure.remedy) from None
    if is_revoked(state, chain[0]):
        show.warn(
            "this certificate is revoked: whoever looks that up will not trust it. For another: 02, 04, 05, 06"
        )
    outside = [domain for domain in domains if not x509.covers(chain[0], domain)]
    if outside:
        held = ", ".join(x509.dns_names(chain[0]))
        raise Usage(
            f"the certificate does not cover {', '.join(outside)}; it has {held}",
            "add the names to [certificate] domains, and get a new one: 02, 04, 05, 06",
        )
    return KeyPair(chain, x509.certificate_pem(chain).decode("ascii"), x509.traditional_private_key_pem(key))


def is_revoked(state: State, leaf: crypto_x509.Certificate) -> bool:
    """Whether 09_revoke.py has revoked this certificate."""
    if not state.exists("revoked.json"):
        return False
    return state.read_json("revoked.json", "09_revoke.py").get("serial") == x509.serial_hex(leaf)


def wait_until(what: str, ask: Callable[[], str | None], timeout: float = SERVED_TIMEOUT) -> None:
    """Ask until the answer is None; a text says what is still missing. Failure, with it, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.25
    with show.waiting(timeout) as waiting:
        while missing := ask():
            if time.monotonic() >= deadline:
                raise Failure(
                    f"waited {timeout:.0f} s for {what}, but {missing}",
                    "see its state in the console; then run this again",
                )
            waiting.update(f"{what}: {missing}")
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(pause * 2, 5)


def wait_until_served(domain: str, pair: KeyPair, verify_at: tuple[str, int] | None) -> None:
    """Connect, as a browser would, until the domain serves this very certificate with a chain that verifies."""
    # Any label does for a wildcard domain; this one says in the server's log who asked.
    host = f"acme-check{domain}" if domain.startswith(".") else domain.replace("*", "acme-check")
    at = verify_at or (host, 443)

    def ask() -> str | None:
        started = time.monotonic()
        missing = look()
        show.trace(
            "tls",
            time.monotonic() - started,
            method="TLS",
            url=f"https://{host}/",
            sent={"address": f"{at[0]}:{at[1]}", "server name": host},
            status=missing or "verified",
            received={} if missing else {"serial": x509.serial_hex(pair.leaf)},
        )
        return missing

    def look() -> str | None:
        try:
            served = x509.served_certificate(host, at)
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error).partition(" (_ssl.c")[0]
            return f"there is no TLS handshake with {at[0]}:{at[1]}: {reason}"
        if served != pair.leaf:
            return (
                f"{at[0]}:{at[1]} still serves serial {x509.serial_hex(served)} of {x509.issuer_name(served)}"
            )
        return x509.served_chain_problem(host, at, pair.chain)

    wait_until(f"{domain} to serve the certificate", ask)
    show.facts(
        served=f"{domain}: serial {x509.serial_hex(pair.leaf)}, verified up to {x509.issuer_name(pair.chain[-1])}"
    )


def for_each(domains: Iterable[str], *steps: Callable[[str], None]) -> None:
    """Take each step for every domain before the next step, so that a slow service works on all of them at once.

    A domain that failed takes no further step, the others do; the Failure at the end names each that failed.
    """
    going, failures = list(domains), {}
    for step in steps:
        for domain in list(going):
            try:
                step(domain)
            except Failure as failure:
                show.warn(f"{domain}: {failure.what}")
                going.remove(domain)
                failures[domain] = failure
    if failures:
        what = "\n".join(
            failure.what if domain in failure.what else f"{domain}: {failure.what}"
            for domain, failure in failures.items()
        )
        raise Failure(what, next(iter(failures.values())).remedy)
