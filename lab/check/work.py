"""What there is to see of a learner's work: the files, and what the CA, the name servers and the edges say of it."""

import configparser
import contextlib
import functools
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rdatatype
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from lab import LabError, look

DNS_TIMEOUT = 2.0
# More than any lab has.
MOST_ROOTS = 10
# With what a CA refuses an account that has been deactivated (RFC 8555 section 7.3.6, and Pebble).
DEACTIVATED = (401, 403)


class NotYet(Exception):  # noqa: N818 - it is no error
    """A step that is still to be done; the text says what there is of it."""


class Wrong(Exception):  # noqa: N818 - the learner's, not the program's
    """A step that was done wrongly: what is wrong, and a hint where to look, which is not the solution."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


class Challenge(NamedTuple):
    """A dns-01 challenge that waits for its answer. name: where the TXT value belongs, CNAMEs not followed"""

    name: str
    token: str


class Ca:
    """The lab's CA, asked without the door in front of it, where faults happen and requests are counted.

    What cannot change any more, such as a certificate, is asked for once.
    """

    def __init__(self, private: Path) -> None:
        """`private` is the lab's own folder, .lab, with Pebble's configuration and the lab's TLS root."""
        pebble = json.loads((private / "pebble.json").read_bytes())["pebble"]
        self.directory_url = f"https://{pebble['listenAddress']}/dir"
        self.ca_bundle = private / "lab-root.pem"
        self._management_url = f"https://{pebble['managementListenAddress']}"
        self._chains: dict[str, list[x509.Certificate]] = {}
        tls = ssl.create_default_context(cafile=str(self.ca_bundle))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )

    @functools.cached_property
    def roots(self) -> str:
        """The PEM of the roots that the CA issues from."""
        found = []
        for number in range(MOST_ROOTS):
            try:
                found.append(self._get(f"/roots/{number}"))
            except urllib.error.HTTPError:
                break
        return "".join(found)

    def status(self, certificate: x509.Certificate) -> str:
        """What the CA says of a certificate: Valid or Revoked; "" for one that is not its own."""
        try:
            answer = self._get(f"/cert-status-by-serial/{certificate.serial_number:x}")
        except urllib.error.HTTPError:
            return ""
        return str(json.loads(answer)["Status"])

    def account(self, key: look.Key) -> look.Account:
        return look.Account(self.directory_url, self.ca_bundle, key)

    def chain(self, account: look.Account, url: str) -> list[x509.Certificate]:
        """A certificate and its issuers, by the address that its order gives."""
        if url not in self._chains:
            self._chains[url] = x509.load_pem_x509_certificates(account.text(url).encode())
        return self._chains[url]

    def _get(self, path: str) -> str:
        request = urllib.request.Request(  # noqa: S310
            self._management_url + path, headers={"User-Agent": "acme-lab-look/1.0"}
        )
        with self._opener.open(request, timeout=look.TIMEOUT) as response:
            return response.read().decode()


class Work:
    """One look at everything; each part is looked at when it is first asked for, and then not again."""

    def __init__(self, settings_file: Path, ca: Ca) -> None:
        self.ca = ca
        self.settings_file = settings_file
        self._settings = configparser.ConfigParser(interpolation=None)
        try:
            self._settings.read_string(settings_file.read_text(encoding="utf-8-sig"))
        except (configparser.Error, UnicodeDecodeError) as error:
            raise LabError(f"{settings_file} cannot be read: {error}", exit_code=2) from None
        self.state = self.beside("files", "directory", "state")

    # The settings.

    def setting(self, section: str, key: str, default: str = "") -> str:
        return self._settings.get(section, key, fallback=default)

    def listed(self, section: str, key: str) -> list[str]:
        """A setting that is a list, by commas or lines."""
        text = self.setting(section, key).replace("\n", ",")
        return [item.strip() for item in text.split(",") if item.strip()]

    def beside(self, section: str, key: str, default: str = "") -> Path:
        """A path, which is relative to the settings file."""
        return self.settings_file.absolute().parent / self.setting(section, key, default)

    @functools.cached_property
    def domains(self) -> set[str]:
        return {ascii_or_as_it_is(domain) for domain in self.listed("certificate", "domains")}

    # The files.

    def exists(self, name: str) -> bool:
        return (self.state / name).exists()

    def read(self, name: str) -> bytes:
        """A file of the state folder; NotYet when it is not there."""
        try:
            return (self.state / name).read_bytes()
        except FileNotFoundError:
            raise NotYet(f"there is no {self.state.name}/{name}") from None
        except OSError as error:
            raise Wrong(
                f"{name} cannot be read: {error.strerror}", "whose is it, and what is its mode?"
            ) from None

    def json(self, name: str, **members: type) -> dict[str, Any]:
        """A JSON object of the state folder, with these members."""
        try:
            value = json.loads(self.read(name))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Wrong(f"{name} is no JSON object", "did an editor or another program touch it?")
        for member, kind in members.items():
            if not isinstance(value.get(member), kind):
                raise Wrong(f"{name} has no usable {member}", "did an editor or another program touch it?")
        return value

    def private_key(self, name: str) -> look.Key:
        """A private key of a kind that CAs take."""
        pem = self.read(name)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise Wrong(
                f"{name} is no private key without a passphrase", "look at its first and its last line"
            ) from None
        if not isinstance(key, look.Key) or key.key_size not in (256, 384, 2048, 3072, 4096):
            raise Wrong(
                f"{name} holds a kind of key that CAs do not take", "see key_type in acme.example.ini"
            )
        return key

    def check_private(self, name: str) -> None:
        """Wrong when somebody else on this machine can read a file."""
        for part, allowed in ((self.state / name, 0o600), (self.state, 0o700)):
            if mode := look.mode_beyond(part, allowed):
                raise Wrong(
                    f"{part.name} has mode {mode}: others on this machine can read the key in it",
                    "whoever has the key is you. Which mode leaves a file to its owner alone? (man chmod)",
                )

    def certificates(self, name: str) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self.read(name))
        except ValueError:
            raise Wrong(
                f"{name} holds no PEM certificate", "what does openssl x509 -text say of it?"
            ) from None

    @property
    def csr(self) -> x509.CertificateSigningRequest:
        try:
            return x509.load_pem_x509_csr(self.read("pending/certificate.csr"))
        except ValueError:
            raise Wrong(
                "certificate.csr is no PEM request", "what does openssl req -text say of it?"
            ) from None

    @property
    def pfx(self) -> pkcs12.PKCS12KeyAndCertificates:
        """certificate.pfx, opened with the password of the settings."""
        packed = self.read("certificate.pfx")
        try:
            password = self.beside("iis", "password_file").read_text(encoding="utf-8").rstrip("\r\n")
            return pkcs12.load_pkcs12(packed, password.encode())
        except (ValueError, OSError):
            raise Wrong(
                "certificate.pfx does not open with the password in [iis] password_file",
                "a PFX keeps the password that it was made with",
            ) from None

    @functools.cached_property
    def chain(self) -> list[x509.Certificate]:
        """The current certificate and its issuers; NotYet when there is none."""
        if not self.has_certificate:
            raise NotYet("there is no certificate yet")
        return self.certificates("fullchain.pem")

    @property
    def has_certificate(self) -> bool:
        return self.exists("fullchain.pem")

    def replaced(self) -> list[x509.Certificate]:
        """The certificates that are kept in history/, the current one among them."""
        return [
            self.certificates(str(path))[0]
            for path in sorted((self.state / "history").glob("*/certificate.pem"))
        ]

    def trace(self) -> list[dict[str, Any]]:
        """What the scripts have noted of their exchanges, oldest first; a line cut off at the end is left out."""
        if not self.exists("trace.jsonl"):
            return []
        lines = []
        for line in self.read("trace.jsonl").decode(errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in lines if isinstance(line, dict)]

    # The CA.

    @property
    def account(self) -> look.Account | None:
        """The account of the account key; None when the CA has none, or has ended it."""
        return self._account if isinstance(self._account, look.Account) else None

    @property
    def deactivated(self) -> bool:
        """Whether the CA refuses the account for good."""
        return self._account in DEACTIVATED

    @functools.cached_property
    def _account(self) -> look.Account | int:
        return self.account_of("account.key")

    def account_of(self, name: str) -> look.Account | int:
        """The account of a private key, or the HTTP status with which the CA says that there is none."""
        try:
            return self.ca.account(self.private_key(name))
        except urllib.error.HTTPError as refusal:
            return refusal.code

    @functools.cached_property
    def order(self) -> dict[str, Any] | None:
        """The pending order, as the CA has it now; None when the CA does not know it, or not us."""
        url = self.json("pending/order.json").get("order_url")
        try:
            return self.account.ask(str(url)) if self.account else None
        except (urllib.error.HTTPError, ValueError):
            return None

    @functools.cached_property
    def challenges(self) -> list[Challenge]:
        """What the pending order wants to see in the DNS and has not seen yet."""
        found = []
        account = self.account
        for authorization in map(account.ask, self.order["authorizations"]) if account and self.order else ():
            if authorization["status"] == "pending":
                tokens = [c["token"] for c in authorization["challenges"] if c["type"] == "dns-01"]
                name = f"_acme-challenge.{authorization['identifier']['value']}"
                found += [Challenge(name, token) for token in tokens]
        return found

    def newest_issued(self) -> x509.Certificate | None:
        """The certificate that the CA issued to this account last; None when it does not say, or there is none."""
        leaves = []
        for order in self.orders:
            # Pebble hands out no certificate that has been revoked.
            with contextlib.suppress(urllib.error.HTTPError):
                if order["status"] == "valid" and self.account:
                    leaves.append(self.ca.chain(self.account, order["certificate"])[0])
        return max(leaves, key=lambda leaf: leaf.not_valid_before_utc, default=None)

    @functools.cached_property
    def orders(self) -> list[dict[str, Any]]:
        """Every order of the account, as the CA has it; none where the CA has no account for us."""
        account = self.account if self.exists("account.key") else None
        return [account.ask(url) for url in account.order_urls()] if account else []

    # DNS and TLS.

    def txt_values(self, name: str) -> list[frozenset[str]]:
        """The TXT values at a name, CNAMEs followed, as each name server has them."""
        return [_txt_values(name, address) for address in self.listed("dns", "nameservers")]

    def served(self, section: str) -> dict[str, x509.Certificate | None]:
        """What the edge of a section, cdn or apigateway, shows for each of its domains; None without a handshake."""
        return {
            d: self.serves(self.setting(section, "verify_at"), d) for d in self.listed(section, "domains")
        }

    def why_untrusted(self, section: str, domain: str) -> str | None:
        """What a browser that trusts the CA's roots says of a domain; None when it is content."""
        try:
            look.served_certificate(self.setting(section, "verify_at"), host_of(domain), self.ca.roots)
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        return None

    def serves(self, address: str, domain: str) -> x509.Certificate | None:
        """What the edge at an address shows for a domain; None without a handshake."""
        try:
            return look.served_certificate(address, host_of(domain))
        except (OSError, ValueError):
            return None


def ascii_or_as_it_is(name: str) -> str:
    """A name as a certificate has it; what is no name, such as "a..b", stays what it is."""
    try:
        return look.ascii_name(name)
    except UnicodeError:
        return name


def host_of(domain: str) -> str:
    """A host that a domain stands for: any label for the wildcard, which Alibaba's CDN writes as a leading dot."""
    return f"www{domain}" if domain.startswith(".") else look.ascii_name(domain)


def _txt_values(name: str, address: str) -> frozenset[str]:
    host, _, port = address.rpartition(":")
    query = dns.message.make_query(name, "TXT", flags=0, use_edns=0, payload=1232)
    try:
        answer, _ = dns.query.udp_with_fallback(query, host, DNS_TIMEOUT, int(port))
    except (dns.exception.DNSException, OSError, ValueError):
        return frozenset()
    return frozenset(
        b"".join(record.strings).decode(errors="replace")
        for rrset in answer.answer
        if rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
    )
