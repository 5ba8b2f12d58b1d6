"""A second CA, written by other people than Pebble: acme2certifier in a process of its own, with a root of its own.

It closes the connection after every answer, sends its root along with the chain, answers a validation in the POST
that asks for it, and gives renewal information.
"""

import configparser
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from conftest import clean_environment
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab import pki

PROCESS = Path(__file__).with_name("second_ca_process.py")


class SecondCA:
    """Runs while it is a context; settings() is then the [acme] section for it, and root is what it issues from."""

    def __init__(
        self,
        folder: Path,
        dns_server: str,
        lifetime: float = 90 * 86400,
        renew_from: float = 85,
        window: int | None = None,
        ask_again: int = 21600,
        renewal_info: bool = True,
        profiles: Mapping[str, str] | None = None,
        eab_keys: Mapping[str, str] | None = None,
        contact_required: bool = False,
        issue_delay: float = 0,
        order_retry_after: int = 1,
    ) -> None:
        """The options are the CA's policy; all times are in seconds.

        dns_server: the host:port that validations ask
        renew_from, window: the suggested window begins when so many percent of the lifetime are over, and lasts so
            long, or to the end; ask_again: the Retry-After of renewal information
        eab_keys: kid -> MAC key, base64url; with them, external account binding is required
        issue_delay: how long the order is "processing", with order_retry_after as its Retry-After
        """
        self.folder = folder
        self.log = folder / "second-ca.log"
        folder.mkdir(parents=True, exist_ok=True)
        tls = pki.write_server_files(folder)
        self.ca_bundle = tls.root
        self.root = self._make_authority()
        host, port = dns_server.split(":")
        process = {
            "dns_server": [host, int(port)],
            "lifetime": lifetime,
            "issue_delay": issue_delay,
            "certificate": str(tls.certificate),
            "key": str(tls.key),
        }
        (folder / "process.json").write_text(json.dumps(process))
        sections: dict[str, dict[str, Any]] = {
            "DBhandler": {"handler": "wsgi", "dbfile": folder / "second-ca.db"},
            "CAhandler": {
                "handler_module": "acme2certifier.cahandlers.openssl_ca_handler",
                "issuing_ca_key": folder / "issuer.key",
                "issuing_ca_cert": folder / "issuer.pem",
                "issuing_ca_crl": folder / "issuer.crl",
                "ca_cert_chain_list": json.dumps([str(folder / "root.pem")]),
                "cert_save_path": folder / "issued",
                # An empty subject wants a critical subject alternative name (RFC 5280 section 4.2.1.6), and
                # this CA never marks it so.
                "cn_enforce": True,
            },
            "Account": {"contact_check_disable": not contact_required},
            "Directory": {"tos_url": "https://second-ca.example/terms"},
            # Zero: it answers a slow finalize at once, with the order as it is.
            "Certificate": {"enrollment_timeout": 0 if issue_delay else 5},
            "Order": {"retry_after_timeout": order_retry_after},
            "Renewalinfo": {
                "renewalinfo_disable": not renewal_info,
                "renewalthreshold_pctg": renew_from,
                "retry_after_timeout": ask_again,
            },
        }
        if window:
            sections["Renewalinfo"]["renewal_window_duration"] = window
        if profiles:
            sections["Order"]["profiles"] = json.dumps(profiles)
        if eab_keys:
            (folder / "eab.json").write_text(json.dumps(eab_keys))
            sections["EABhandler"] = {
                "eab_handler_module": "acme2certifier.eabhandlers.json_handler",
                "key_file": folder / "eab.json",
            }
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict({name: {k: str(v) for k, v in keys.items()} for name, keys in sections.items()})
        with open(folder / "acme_srv.cfg", "w", encoding="utf-8") as file:
            parser.write(file)
        (folder / "issued").mkdir(exist_ok=True)

    def __enter__(self) -> "SecondCA":
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(PROCESS), str(self.folder)],
                cwd=self.folder,
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout
        port = self._process.stdout.readline().strip().decode()
        if not port:
            self.__exit__()
            raise AssertionError(f"the second CA did not start:\n{self.log.read_text()}")
        self.directory_url = f"https://127.0.0.1:{port}/directory"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def settings(self, **more: Any) -> dict[str, Any]:
        """The [acme] section for this CA."""
        return {"directory": self.directory_url, "ca_bundle": self.ca_bundle, **more}

    def journal(self) -> list[dict[str, Any]]:
        """Every exchange so far: method, path, content_type, user_agent, protected, payload, status, headers."""
        return [json.loads(line) for line in (self.folder / "journal.jsonl").read_text().splitlines()]

    def orders(self) -> list[dict[str, Any]]:
        """The payload of every newOrder that was taken."""
        taken = [e for e in self.journal() if e["path"] == "/acme/neworders" and e["status"] == 201]
        return [entry["payload"] for entry in taken]

    def revoked(self) -> set[int]:
        """The serial numbers in its revocation list."""
        path = self.folder / "issuer.crl"
        return (
            {entry.serial_number for entry in x509.load_pem_x509_crl(path.read_bytes())}
            if path.exists()
            else set()
        )

    def _make_authority(self) -> x509.Certificate:
        """A root, and the issuer below it whose key the CA has."""
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = _authority("Second CA root", root_key, "Second CA root", root_key, path_length=1)
        issuer = _authority("Second CA issuer", key, "Second CA root", root_key, path_length=0)
        pem = serialization.Encoding.PEM
        (self.folder / "root.pem").write_bytes(root.public_bytes(pem))
        (self.folder / "issuer.pem").write_bytes(issuer.public_bytes(pem))
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pki.write_private(self.folder / "issuer.key", key.private_bytes(pem, *private))
        return root


def _authority(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    path_length: int,
) -> x509.Certificate:
    subject_name, issuer_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)
    )
    now = datetime.now(timezone.utc)
    nothing_else = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
        + ("key_agreement", "encipher_only", "decipher_only"),
        False,
    )
    return (
        x509.CertificateBuilder(issuer_name, subject_name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, path_length), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **nothing_else), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
