"""The clients: how each is told what to do, with the settings that its own documentation has for the purpose."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lab import bootstrap
from lab.bench.hooks import LEGO_INTERVAL, HookServer
from lab.bench.peers import CERTBOT, SEWER
from lab.lab import Lab

HERE = Path(__file__).resolve().parent
HOOK = str(HERE / "hook.sh")
MAIL = "admin@bench.test"
# A name that the lab's CA refuses at once.
REFUSED = "refused.test"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"

Command = list[str]


@dataclass(frozen=True)
class Site:
    """What a client works on and with. slowest: seconds until the last name server has a record."""

    lab: Lab
    hooks: HookServer
    folder: Path
    names: list[str]
    slowest: float

    @property
    def ca_bundle(self) -> str:
        return str(self.lab.ca_bundle)

    @property
    def enough(self) -> str:
        """The shortest fixed wait, in whole seconds, after which the CA sees the records."""
        return str(0 if not self.slowest else int(self.slowest) + 1)

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)


@dataclass(frozen=True)
class Job:
    """What is run. once: beforehand, not measured, an account for example; within: what the measured runs in."""

    commands: list[Command]
    certificate: Path
    once: list[Command] = field(default_factory=list)
    once_may_fail: bool = False
    within: Command = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """A client in the comparison. settings: in words, as printed; alibaba: speaks to Alibaba Cloud itself."""

    name: str
    program: str
    settings: str
    make: Callable[[Site], Job]
    alibaba: bool = False
    wildcards: bool = True


def scripts(site: Site, *numbers: str) -> list[Command]:
    """Our own scripts, by their numbers."""
    found = [next(bootstrap.ROOT.glob(f"{number}_*.py")) for number in numbers]
    return [[sys.executable, str(script), "--config", str(site.folder / "acme.ini")] for script in found]


def our_settings(site: Site) -> None:
    # Nothing to install on, so that 11 ends where 06 does; an EC key, as every other client makes.
    nothing: dict[str, object] = {"domains": None}
    site.lab.write_settings(
        site.folder / "acme.ini",
        site.names,
        certificate={"key_type": "ec256"},
        cdn=nothing,
        apigateway=nothing,
    )


def ours(site: Site) -> Job:
    our_settings(site)
    return Job(
        scripts(site, "04", "05", "06"),
        site.folder / "state" / "fullchain.pem",
        once=scripts(site, "01", "02", "03"),
        environment=site.lab.environment(),
    )


def ours_in_one(site: Site) -> Job:
    our_settings(site)
    return Job(
        scripts(site, "11"),
        site.folder / "state" / "fullchain.pem",
        once=scripts(site, "01", "03"),
        environment=site.lab.environment(),
    )


def minimal(site: Site) -> Job:
    our_settings(site)
    key = ec.generate_private_key(ec.SECP256R1())
    (site.folder / "request.der").write_bytes(
        certificate_request(key, site.names).public_bytes(serialization.Encoding.DER)
    )
    # The account is made by our scripts; where it is, the program reads from their file.
    state = site.folder / "state"
    task = {
        "directory": site.lab.directory_url,
        "ca_bundle": site.ca_bundle,
        "alibaba": site.lab.alibaba_endpoint,
        "access_key_id": site.lab.access_key.access_key_id,
        "access_key_secret": site.lab.access_key.access_key_secret,
        "account_key": str(state / "account.key"),
        "account": str(state / "account.json"),
        "csr": str(site.folder / "request.der"),
        "certificate": str(site.folder / "certificate.pem"),
        "names": site.names,
        "zone": site.hooks.zone,
        "lag": site.slowest,
    }
    file = site.write("task.json", json.dumps(task))
    return Job(
        [[sys.executable, str(HERE / "minimal.py"), file]],
        site.folder / "certificate.pem",
        once=scripts(site, "01", "03"),
    )


def uacme(site: Site) -> Job:
    directory = str(site.folder / "uacme")
    command = ["uacme", "--confdir", directory, "--acme-url", site.lab.directory_url, "--type", "EC"]
    # Its TLS library trusts the system's roots and nothing else: in a namespace of its own those are the lab's.
    roots = f'mount --bind "$0" {SYSTEM_ROOTS} && exec "$@"'
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", roots, site.ca_bundle]
    return Job(
        [[*command, "--hook", HOOK, "issue", *site.names]],
        site.folder / "uacme" / site.names[0] / "cert.pem",
        once=[[*within, *command, "--yes", "new"]],
        within=within,
        environment={"BENCH_HOOK": site.hooks.address},
    )


def dehydrated(site: Site) -> Job:
    config = {
        "CA": site.lab.directory_url,
        "BASEDIR": str(site.folder / "dehydrated"),
        "CHALLENGETYPE": "dns-01",
        "HOOK": HOOK,
        "HOOK_CHAIN": "yes",
        "KEY_ALGO": "prime256v1",
        "CURL_OPTS": f"--cacert {site.ca_bundle}",
    }
    (site.folder / "dehydrated").mkdir()
    file = site.write("config", "".join(f'{key}="{value}"\n' for key, value in config.items()))
    return Job(
        [["dehydrated", "--config", file, "--cron", "--domain", " ".join(site.names)]],
        site.folder / "dehydrated" / "certs" / site.names[0] / "fullchain.pem",
        once=[["dehydrated", "--config", file, "--register", "--accept-terms"]],
        environment={"BENCH_HOOK": site.hooks.address},
    )


def certbot(site: Site) -> Job:
    manual = ["--manual", "--preferred-challenges", "dns"]
    hooks = ["--manual-auth-hook", HOOK, "--manual-cleanup-hook", HOOK]
    return _certbot(site, ["certbot"], [*manual, *hooks], {"BENCH_HOOK": site.hooks.address})


def certbot_aliyun(wait: Callable[[Site], str]) -> Callable[[Site], Job]:
    """certbot with the plugin certbot-dns-aliyun, which waits for a fixed time, in seconds."""

    def make(site: Site) -> Job:
        key = site.lab.access_key
        credentials = site.write(
            "aliyun.ini",
            f"dns_aliyun_access_key = {key.access_key_id}\n"
            f"dns_aliyun_access_key_secret = {key.access_key_secret}\n",
        )
        plugin = ["--authenticator", "dns-aliyun", "--dns-aliyun-credentials", credentials]
        return _certbot(
            site,
            [str(CERTBOT.with_name("python")), str(HERE / "pointed.py"), "certbot"],
            [*plugin, "--dns-aliyun-propagation-seconds", wait(site)],
            {"LAB_ALIBABA": site.lab.alibaba_endpoint},
        )

    return make


def _certbot(site: Site, program: Command, how: list[str], environment: dict[str, str]) -> Job:
    folders = [f"--{kind}-dir={site.folder / 'certbot' / kind}" for kind in ("config", "work", "logs")]
    common = ["--non-interactive", "--server", site.lab.directory_url, *folders]
    names = [argument for name in site.names for argument in ("-d", name)]
    return Job(
        [[*program, "certonly", *common, *how, "--key-type", "ecdsa", *names]],
        site.folder / "certbot" / "config" / "live" / site.names[0] / "fullchain.pem",
        once=[[*program, "register", *common, "--agree-tos", "--no-eff-email", "--email", MAIL]],
        environment={**environment, "REQUESTS_CA_BUNDLE": site.ca_bundle},
    )


def lego(site: Site) -> Job:
    options = ["--path", str(site.folder / "lego"), "--server", site.lab.directory_url]
    options += ["--accept-tos", "--email", MAIL, "--key-type", "ec256", "--dns", "httpreq"]
    # It would look on port 53 of the zone's name servers, which a lab without root cannot have.
    options += ["--dns.disable-cp", "--dns.resolvers", site.lab.nameservers[0]]
    names = [argument for name in site.names for argument in ("--domains", name)]
    return Job(
        [["lego", *options, *names, "run"]],
        site.folder / "lego" / "certificates" / f"{site.names[0]}.crt",
        # There is no command for the account alone. An order that the CA refuses makes it, too.
        once=[["lego", *options, "--domains", REFUSED, "run"]],
        once_may_fail=True,
        environment={
            "LEGO_CA_CERTIFICATES": site.ca_bundle,
            "HTTPREQ_ENDPOINT": f"http://{site.hooks.address}/lego",
            "HTTPREQ_POLLING_INTERVAL": str(LEGO_INTERVAL),
        },
    )


def sewer(site: Site) -> Job:
    account = site.folder / "account.pem"
    account.write_bytes(_pem(rsa.generate_private_key(65537, 2048)))
    key = site.lab.access_key
    command = [str(SEWER.with_name("python")), str(HERE / "pointed.py"), "sewer", "--provider", "aliyun"]
    command += ["--endpoint", "staging", "--acct_key", str(account), "--is_new_acct"]
    command += ["--cert_key_type", "secp256r1", "--out_dir", str(site.folder), "--bundle_name", "certificate"]
    command += ["--p_opts", f"prop_delay={site.enough}", "--domain", site.names[0]]
    return Job(
        [[*command, *(["--alt_domains", *site.names[1:]] if site.names[1:] else [])]],
        site.folder / "certificate.crt",
        environment={
            "LAB_DIRECTORY": site.lab.directory_url,
            "LAB_ALIBABA": site.lab.alibaba_endpoint,
            "REQUESTS_CA_BUNDLE": site.ca_bundle,
            "ALIBABA_CLOUD_CA_BUNDLE": site.ca_bundle,
            "ALIYUN_AK_ID": key.access_key_id,
            "ALIYUN_AK_SECRET": key.access_key_secret,
        },
    )


def acme_tiny(site: Site) -> Job:
    folder = site.folder
    (folder / "tokens").mkdir()
    site.hooks.files = folder / "tokens"
    (folder / "account.pem").write_bytes(_pem(rsa.generate_private_key(65537, 2048)))
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()), site.names)
    (folder / "request.pem").write_bytes(request.public_bytes(serialization.Encoding.PEM))
    command = [
        "acme-tiny",
        "--account-key",
        str(folder / "account.pem"),
        "--csr",
        str(folder / "request.pem"),
    ]
    command += ["--acme-dir", str(folder / "tokens"), "--directory-url", site.lab.directory_url]
    # It would look at port 80 for the token first, which a lab without root cannot have.
    command += ["--disable-check"]
    return Job(
        [["sh", "-c", 'exec "$@" > "$0"', str(folder / "certificate.pem"), *command]],
        folder / "certificate.pem",
        environment={"SSL_CERT_FILE": site.ca_bundle},
    )


def certificate_request(key: ec.EllipticCurvePrivateKey, names: list[str]) -> x509.CertificateSigningRequest:
    alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


OURS, IN_ONE, MINIMAL = "04 05 06", "11_renew.py", "minimal client"
HOOKED = "hook.sh, which knows when DNS has the record"
CLIENTS = (
    Client(OURS, sys.executable, "each a process of its own, as typed by hand", ours, alibaba=True),
    Client(IN_ONE, sys.executable, "02 04 05 06 in one process", ours_in_one, alibaba=True),
    Client(
        MINIMAL,
        sys.executable,
        "knows the zone and when DNS has the record; cleans nothing up",
        minimal,
        True,
    ),
    Client("uacme", "uacme", f"--type EC; {HOOKED}", uacme),
    Client("acme-tiny", "acme-tiny", "http-01, no wildcard; --disable-check", acme_tiny, wildcards=False),
    Client("dehydrated", "dehydrated", f'HOOK_CHAIN="yes" KEY_ALGO="prime256v1"; {HOOKED}', dehydrated),
    Client("certbot", "certbot", f"--manual --key-type ecdsa; {HOOKED}", certbot),
    Client(
        "certbot-dns-aliyun",
        str(CERTBOT),
        "--dns-aliyun-propagation-seconds 30, its default",
        certbot_aliyun(lambda site: "30"),
        alibaba=True,
    ),
    Client(
        "certbot-dns-aliyun, in hindsight",
        str(CERTBOT),
        "--dns-aliyun-propagation-seconds: the whole second after which DNS has it",
        certbot_aliyun(lambda site: site.enough),
        alibaba=True,
    ),
    Client(
        "lego",
        "lego",
        "httpreq in place of alidns, whose endpoint cannot be set; its interval, 2 s",
        lego,
        True,
    ),
    Client(
        "sewer",
        str(SEWER),
        "prop_delay as above; its answer to a challenge is that of ACME drafts, which Pebble refuses",
        sewer,
        True,
    ),
)
