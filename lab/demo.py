"""`python3 lab demo`: every script in order, as a user would run it, and each result checked from outside.

No check takes a script's word: CA, edges, zones and files are asked here, with code of its own.
"""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from lab import LabError, bootstrap, look, pki, world
from lab.lab import Lab
from lab.up import end_on_signals

SCRIPT_TIMEOUT = 180.0
# The second name server is late, so that waiting for every server can be seen.
LAGS = (0.0, 0.5)
LINES_OF_A_FAILURE = 30
# What a script needs to be told where nobody can be asked.
ARGUMENTS = {"13": ("--yes",)}


class CheckFailedError(Exception):
    """What was found instead of what a script should have brought about."""


class Row(NamedTuple):
    """One line of the table: `result` is what was checked, or what was found wrong."""

    script: str
    seconds: float
    held: bool
    result: str


def run(options: argparse.Namespace) -> int:
    """Run all steps; exit code 0 only if every check held."""
    # Narration has signs that not every terminal knows.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    end_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="acme-lab-demo-"))
    started = time.perf_counter()
    try:
        with Lab(folder / "lab", lags=LAGS) as lab:
            demo = Demo(lab, folder, _domains(options.domains), quiet=options.quiet)
            start_seconds = time.perf_counter() - started
            rows = list(demo.rows())
        _print_table(rows, start_seconds, time.perf_counter() - started)
    finally:
        if options.keep:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if all(row.held for row in rows):
        print("\nnext: python3 lab up, and the labs, which begin with docs/labs/00.md", flush=True)
        return 0
    if not options.keep:
        print("--keep keeps the folder with every file that was made")
    return 1


class Demo:
    """The user's side of one demo: settings, state folder, environment, and what was there before."""

    def __init__(self, lab: Lab, folder: Path, domains: Sequence[str], quiet: bool = False) -> None:
        self.lab = lab
        self.folder = folder
        self.state = folder / "state"
        self.settings = folder / "acme.ini"
        self.domains = domains
        self.cdn_domains = _covered_or_first(world.CDN_DOMAINS, domains)
        self.apigateway_domains = _covered_or_first(world.APIGATEWAY_DOMAINS, domains)
        self.pfx_password = secrets.token_urlsafe(12)
        self.output: list[str] = []
        self._quiet = quiet
        self._prepare()
        self.records_before = self.records()

    def _prepare(self) -> None:
        """Write the settings, and give the cloud the domains that it does not have."""
        for domain in set(self.cdn_domains) - set(world.CDN_DOMAINS):
            self.lab.cloud.cdn.add_domain(domain, account=world.LEARNER)
        for domain in set(self.apigateway_domains) - set(world.APIGATEWAY_DOMAINS):
            self.lab.cloud.apigateway.bind_domain(self.lab.group_id, domain)
        password_file = self.folder / "pfx-password.txt"
        pki.write_private(password_file, self.pfx_password.encode())
        self.lab.write_settings(
            self.settings,
            domains=self.domains,
            state="state",
            cdn={"domains": ", ".join(self.cdn_domains)},
            apigateway={"domains": ", ".join(self.apigateway_domains)},
            iis={"windows": "2022", "password_file": password_file.name},
        )

    def rows(self) -> Iterator[Row]:
        """Run the steps one after the other, up to the first that does not hold."""
        for number, check in enumerate(CHECKS, 1):
            row = self._step(number, check)
            yield row
            if not row.held:
                return
        yield _checked("", 0.0, lambda: check_secrets(self))

    def records(self) -> set[tuple[str, str, str, str]]:
        """Every record of every zone: zone, RR, type, value."""
        dns = self.lab.cloud.dns
        return {(zone, r.rr, r.type, r.value) for zone in dns.zone_names() for r in dns.records(zone)}

    def certificate(self) -> x509.Certificate:
        """The certificate that the state folder holds."""
        return x509.load_pem_x509_certificate((self.state / "certificate.pem").read_bytes())

    def _step(self, number: int, check: "Callable[[Demo], str]") -> Row:
        scripts = sorted(bootstrap.ROOT.glob(f"{number:02}_*.py"))
        if not scripts:
            return Row(f"{number:02}", 0.0, False, "there is no such script")
        script = scripts[0]
        self._show(f"\n{script.name}")
        started = time.perf_counter()
        exit_code, lines = self._run(script)
        seconds = time.perf_counter() - started
        self.output += lines
        if exit_code == 0:
            row = _checked(script.name, seconds, lambda: check(self))
        else:
            row = Row(script.name, seconds, False, f"exit code {exit_code}")
        if self._quiet and not row.held:
            print("\n".join(lines[-LINES_OF_A_FAILURE:]), flush=True)
        self._show(f"{'checked' if row.held else 'FAILED'}: {row.result}")
        return row

    def _run(self, script: Path) -> tuple[int, list[str]]:
        """Run a script as a user would, showing what it says as it says it."""
        lines = []
        with (
            subprocess.Popen(  # noqa: S603
                [
                    sys.executable,
                    str(script),
                    "--config",
                    str(self.settings),
                    *ARGUMENTS.get(script.name[:2], ()),
                ],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            ) as process
        ):
            deadline = threading.Timer(SCRIPT_TIMEOUT, process.kill)
            deadline.start()
            try:
                for line in process.stdout or ():
                    lines.append(line.rstrip())
                    self._show(_dimmed(f"    {lines[-1]}"))
            except BaseException:
                process.terminate()
                raise
            finally:
                deadline.cancel()
        return process.returncode, lines

    def _environment(self) -> dict[str, str]:
        """Our environment without what would lead a script away from the lab, with the access key."""
        led_away = re.compile(r"(ACME_CONFIG|ALIBABA_CLOUD_.*|ALIYUN_.*|.*_proxy)", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if not led_away.fullmatch(name)}
        return environment | self.lab.environment() | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}

    def _show(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


# The checks, one for each script: each returns what it has seen, or raises CheckFailedError.


def check_account_key(demo: Demo) -> str:
    """01: a private key that nobody else can read."""
    key = _private_key(demo.state / "account.key")
    return f"{look.key_name(key)} key, readable by its owner alone"


def check_certificate_request(demo: Demo) -> str:
    """02: a CSR for exactly the names of the settings, by a key that is not the account's."""
    key = _private_key(demo.state / "pending" / "certificate.key")
    request = x509.load_pem_x509_csr((demo.state / "pending" / "certificate.csr").read_bytes())
    names = look.names(request)
    _expect(request.is_signature_valid, "the CSR's signature is wrong")
    _expect(look.same_key(request, key), "the CSR is for another key")
    account_key = _private_key(demo.state / "account.key")
    _expect(not look.same_key(request, account_key), "the key is the account's")
    _expect(
        names == set(map(look.ascii_name, demo.domains)), f"the CSR's names are {', '.join(sorted(names))}"
    )
    _expect(not list(request.subject), "the CSR has a subject")
    return f"CSR for {len(names)} names, {look.key_name(key)} key of its own"


def check_account(demo: Demo) -> str:
    """03: the CA has a valid account for the key."""
    account = _account(demo)
    _expect(account.body["status"] == "valid", f"the CA says the account is {account.body['status']}")
    return f"the CA knows the key: account {account.url.rsplit('/', 1)[-1]} is valid"


def check_order(demo: Demo) -> str:
    """04: the CA has an order for the names."""
    order = _only_order(_account(demo))
    names = {identifier["value"] for identifier in order["identifiers"]}
    _expect(
        names == set(map(look.ascii_name, demo.domains)), f"the order's names are {', '.join(sorted(names))}"
    )
    _expect(order["status"] in ("pending", "ready"), f"the order is {order['status']}")
    return f"the CA has an order for {len(names)} names: {order['status']}"


def check_authorizations(demo: Demo) -> str:
    """05: control of every name is proven, and the zones are as they were."""
    account = _account(demo)
    order = _only_order(account)
    statuses = [account.ask(url)["status"] for url in order["authorizations"]]
    _expect(set(statuses) == {"valid"}, f"the authorizations are {', '.join(statuses)}")
    _expect(order["status"] in ("ready", "valid"), f"the order is {order['status']}")
    changed = demo.records() ^ demo.records_before
    _expect(not changed, f"the zones have changed: {sorted(changed)}")
    return f"{len(statuses)} authorizations valid; DNS records as before"


def check_certificate(demo: Demo) -> str:
    """06: a valid certificate of this CA for the names, with its chain and its key."""
    certificate = demo.certificate()
    key = _private_key(demo.state / "certificate.key")
    _expect(look.same_key(certificate, key), "certificate and key do not match")
    _expect(
        look.names(certificate) == set(map(look.ascii_name, demo.domains)),
        "the certificate's names are others",
    )
    chain = x509.load_pem_x509_certificates((demo.state / "fullchain.pem").read_bytes())
    roots = x509.load_pem_x509_certificates(demo.lab.issuer_roots().encode())
    _expect(chain[0] == certificate, "fullchain.pem does not begin with certificate.pem")
    for issued, issuer in zip(chain, chain[1:], strict=False):
        _expect(look.issued_by(issued, issuer), f"{issued.subject} is not issued by the next in the chain")
    _expect(any(look.issued_by(chain[-1], root) for root in roots), "the chain does not end at the CA's root")
    _expect_status(demo, "Valid")
    return f"serial {look.short_serial(certificate)}: the CA says Valid, the chain leads to its root"


def check_cdn(demo: Demo) -> str:
    """07: the CDN's edge serves the certificate."""
    return _check_edge(demo, demo.lab.cdn_edge, demo.cdn_domains)


def check_apigateway(demo: Demo) -> str:
    """08: the API Gateway's edge serves the certificate."""
    return _check_edge(demo, demo.lab.apigateway_edge, demo.apigateway_domains)


def check_revoked(demo: Demo) -> str:
    """09: the CA says that the certificate is revoked."""
    _expect_status(demo, "Revoked")
    return f"serial {look.short_serial(demo.certificate())}: the CA says Revoked"


def check_pfx(demo: Demo) -> str:
    """10: the PFX opens with the password, and holds the key and the whole chain."""
    pfx = demo.state / "certificate.pfx"
    _expect_private(pfx)
    try:
        content = pkcs12.load_pkcs12(pfx.read_bytes(), demo.pfx_password.encode())
    except ValueError as error:
        raise CheckFailedError(f"the PFX does not open: {error}") from None
    if content.key is None or content.cert is None:
        raise CheckFailedError("the PFX has no key or no certificate")
    _expect(content.cert.certificate == demo.certificate(), "the PFX has another certificate")
    _expect(look.same_key(content.key, demo.certificate()), "the PFX has another key")
    chain = x509.load_pem_x509_certificates((demo.state / "chain.pem").read_bytes())
    _expect([c.certificate for c in content.additional_certs] == chain, "the PFX has another chain")
    return f"the PFX opens: key, certificate and {len(chain)} of its chain"


def check_renewed(demo: Demo) -> str:
    """11: another certificate in place of the revoked one, valid, served by both edges; the old set kept."""
    check_certificate(demo)
    check_pfx(demo)
    check_cdn(demo)
    check_apigateway(demo)
    current = (demo.state / "certificate.key").read_bytes()
    kept = [path.read_bytes() for path in (demo.state / "history").glob("*/certificate.key")]
    _expect(len(kept) == 2 and current in kept, "the old set is not kept, or the key is the old one")
    changed = demo.records() ^ demo.records_before
    _expect(not changed, f"the zones have changed: {sorted(changed)}")
    serial = look.short_serial(demo.certificate())
    return f"serial {serial}: the CA says Valid, both edges serve it; the old set is kept"


def check_changed_key(demo: Demo) -> str:
    """12: the CA knows the account by the new key, and by the old one no more."""
    account = _account(demo)
    _expect(account.body["status"] == "valid", f"the CA says the account is {account.body['status']}")
    old = list((demo.state / "history").glob("account-*.key"))
    _expect(len(old) == 1, "the old key is not kept")
    try:
        _account(demo, old[0])
    except urllib.error.HTTPError as refusal:
        _expect(refusal.code == 400, f"the CA answers the old key with {refusal.code}")
    else:
        raise CheckFailedError("the CA still knows the old key")
    return f"account {account.url.rsplit('/', 1)[-1]} has the new key; the old one is unknown to the CA"


def check_deactivated(demo: Demo) -> str:
    """13: the CA takes nothing from the account any more."""
    try:
        status = _account(demo).body["status"]
    except urllib.error.HTTPError as refusal:
        _expect(refusal.code in (401, 403), f"the CA answers with {refusal.code}")
        status = "deactivated"
    _expect(status == "deactivated", f"the CA says the account is {status}")
    return "the CA refuses the account"


def check_secrets(demo: Demo) -> str:
    """After all: no key that others can read, no secret in what was printed."""
    keys = [p for p in demo.state.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    for path in keys:
        _expect_private(path)
    printed = "\n".join(demo.output)
    _expect("PRIVATE KEY" not in printed, "a private key was printed")
    for name, secret in (*demo.lab.environment().items(), ("the PFX password", demo.pfx_password)):
        _expect(name.endswith("_ID") or secret not in printed, f"{name} was printed")
    return f"{len(keys)} key files readable by their owner alone; no secret was printed"


CHECKS = (
    check_account_key,
    check_certificate_request,
    check_account,
    check_order,
    check_authorizations,
    check_certificate,
    check_cdn,
    check_apigateway,
    check_revoked,
    check_pfx,
    check_renewed,
    check_changed_key,
    check_deactivated,
)


def _account(demo: Demo, key: Path | None = None) -> look.Account:
    """The account as the CA sees it, asked with the account's key; HTTPError when the CA refuses that."""
    private_key = _private_key(key or demo.state / "account.key")
    return look.Account(demo.lab.directory_url, demo.lab.ca_bundle, private_key)


def _only_order(account: look.Account) -> Any:
    return account.ask(next(account.order_urls()))


def _check_edge(demo: Demo, address: str, domains: Sequence[str]) -> str:
    serial = demo.certificate().serial_number
    for domain in domains:
        served = look.served_certificate(address, domain, demo.lab.issuer_roots())
        _expect(served.serial_number == serial, f"{domain} serves another certificate")
    return f"TLS handshake: {', '.join(domains)} serve{'s' * (len(domains) == 1)} this serial, verified"


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise CheckFailedError(found)


def _expect_status(demo: Demo, wanted: str) -> None:
    status = demo.lab.pebble.certificate_status(demo.certificate().serial_number)["Status"]
    _expect(status == wanted, f"the CA says that the certificate is {status}")


def _expect_private(path: Path) -> None:
    # Windows has no such bits: a user's folder is private there by its access list.
    if os.name == "posix":
        for part, allowed in ((path, 0o600), (path.parent, 0o700)):
            mode = stat.S_IMODE(part.stat().st_mode)
            _expect(mode == allowed, f"{part.name} has mode {mode:04o}, not {allowed:04o}")


def _private_key(path: Path) -> Any:
    _expect_private(path)
    return serialization.load_pem_private_key(path.read_bytes(), password=None)


def _checked(script: str, seconds: float, check: Callable[[], str]) -> Row:
    """A row from a check; whatever goes wrong in looking is a failed check too."""
    try:
        return Row(script, seconds, True, check())
    except CheckFailedError as failure:
        return Row(script, seconds, False, str(failure))
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Row(script, seconds, False, f"{type(error).__name__}: {error}")


def _domains(option: str | None) -> Sequence[str]:
    if option is None:
        return world.CERTIFICATE_DOMAINS
    domains = [name.strip() for name in option.split(",") if name.strip()]
    if not domains:
        raise LabError("--domains has no name in it", exit_code=2)
    return domains


def _covered_or_first(wanted: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Those of the wanted names that a certificate for `names` covers, else one name that it does cover."""
    covered = [name for name in wanted if name in names or f"*.{name.partition('.')[2]}" in names]
    return covered or [look.ascii_name(names[0]).replace("*", "www", 1)]


def _dimmed(text: str) -> str:
    plain = os.name == "nt" or "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def _print_table(rows: Sequence[Row], start_seconds: float, total_seconds: float) -> None:
    """The table of steps: script, seconds, and what was checked from outside."""
    width = max(len(row.script) for row in rows)
    print(f"\n{'':<6}  {'script':<{width}}  seconds  checked from outside")
    print(f"{'ok':<6}  {'the lab starts':<{width}}  {start_seconds:7.2f}  every part answers")
    for row in rows:
        seconds = f"{row.seconds:7.2f}" if row.script else f"{'':7}"
        print(f"{'ok' if row.held else 'FAILED':<6}  {row.script:<{width}}  {seconds}  {row.result}")
    print(f"{'':<6}  {'in all':<{width}}  {total_seconds:7.2f}", flush=True)
