"""Check what the other scripts will need, before anything is asked of a CA; change nothing.

Call    GET directory; Sts GetCallerIdentity; what Alidns, Cdn and CloudAPI describe; DNS: NS, SOA, CNAME, TXT, CAA
RFC     8555 section 7.1.1, 8659, 8657
Reads   acme.ini; requirements.txt; state/account.json
Writes  nothing
Run     python 00_check_setup.py
Lab     docs/labs/00.md, 5 minutes; not in the articles
Next    01_create_account_key.py
"""

from __future__ import annotations

import contextlib
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - who has an older one is to read this, and not a traceback
    print("fail  Python          this one is too old. What to do: run it with Python 3.10 or newer")
    sys.exit(1)

import importlib.metadata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from common import config, names, show
from common.failure import Failure

# Whether the packages are there is one of the questions, so that a missing one must not end the script here.
with contextlib.suppress(ModuleNotFoundError):
    from aliyunsdkalidns.request.v20150109.DescribeDomainRecordsRequest import DescribeDomainRecordsRequest
    from aliyunsdkalidns.request.v20150109.DescribeDomainsRequest import DescribeDomainsRequest
    from aliyunsdkcdn.request.v20180510.DescribeDomainCertificateInfoRequest import (
        DescribeDomainCertificateInfoRequest,
    )
    from aliyunsdkcloudapi.request.v20160714.DescribeDomainRequest import DescribeDomainRequest
    from aliyunsdkcore.request import RpcRequest

    from common import acme, alibaba, dns, x509

    class GetCallerIdentityRequest(RpcRequest):
        """Of STS, whose SDK package has nothing else for us."""

        def __init__(self) -> None:
            super().__init__("Sts", "2015-04-01", "GetCallerIdentity")


AT_ONCE = 10  # questions in flight
NOTICEABLE = 60  # seconds by which a clock may be wrong before we speak of it
CA_TOLERANCE = 5 * 60  # 06 takes no certificate that begins later than this
ALIBABA_TOLERANCE = 15 * 60  # the service takes nothing that was signed earlier or later than this
MANY_VALUES = 8  # TXT values at one name; answers grow with them, until a name server or a CA gives up
# What the scripts change, which cannot be tried without changing it.
WRITES = {
    "05": "AddDomainRecord, DeleteDomainRecord",
    "07": "SetCdnDomainSSLCertificate",
    "08": "SetDomainCertificate",
}


class Finding(NamedTuple):
    """One line of the report. verdict: ok, warn or fail; remedy: what the person can do about the last two."""

    verdict: str
    about: str
    text: str
    remedy: str = ""


class Report:
    """Prints findings as they come, and counts the failures."""

    def __init__(self) -> None:
        self.failures = 0

    def tell(self, *findings: Finding) -> None:
        for verdict, about, text, remedy in findings:
            self.failures += verdict == "fail"
            line = "; ".join(part.strip() for part in text.splitlines())
            show.result(f"{verdict:<5} {about:<15} {line}{remedy and f'. What to do: {remedy}'}")

    @contextlib.contextmanager
    def trying(self, about: str, subject: str = "") -> Iterator[None]:
        """What cannot be looked at is a failed check too, and the others go on."""
        try:
            yield
        except Failure as failure:
            self.tell(Finding("fail", about, f"{subject}{subject and ': '}{failure.what}", failure.remedy))


def check_packages(requirements: str) -> Finding:
    """Whether what requirements.txt pins is installed, and just that. requirements: lines such as rich==15.0.0"""
    pinned = [line.partition("==") for line in requirements.splitlines() if "==" in line]
    missing, others = [], []
    for package, _, wanted in pinned:
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if found != wanted.strip():
            others.append(f"{package} is {found}, and {wanted.strip()} was tested")
    install = "pip install -r requirements.txt, in the virtual environment of these scripts"
    if missing:
        return Finding("fail", "packages", f"missing: {', '.join(missing)}", install)
    if others:
        return Finding("warn", "packages", "; ".join(others), f"{install}, should it matter")
    return Finding("ok", "packages", f"{len(pinned)}, as requirements.txt has them")


def check_settings(settings: config.Settings) -> Iterator[Finding]:
    """Whether the parts of the settings fit together; each by itself was looked at when they were loaded."""
    domains = settings.certificate.domains
    yield Finding("ok", "settings", f"{len(domains)} names: {', '.join(domains)}")
    # Alibaba's CDN writes a wildcard domain with a dot for the star.
    served = [f"*{d}" if d.startswith(".") else d for d in settings.cdn.domains + settings.apigateway.domains]
    for domain in served:
        if not any(domain == held or names.covers(held, domain) for held in domains):
            remedy = f"add it to [certificate] domains in {settings.file}"
            yield Finding("fail", "settings", f"the certificate will not cover {domain}", remedy)


def check_clock(whose: str, date: str | None, tolerance: float) -> Iterator[Finding]:
    """This machine's clock against a server's. date: the Date header of an answer that came a moment ago"""
    try:
        there = parsedate_to_datetime(date or "").replace(tzinfo=timezone.utc)  # GMT: RFC 9110 section 5.6.7
    except (ValueError, TypeError, OverflowError):  # what Python raises for no date depends on its version
        return
    seconds = (datetime.now(timezone.utc) - there).total_seconds()
    # The header has whole seconds, and its answer took a while: two of them are nothing.
    apart = (
        f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
        if abs(seconds) > 2
        else "agrees with"
    )
    verdict = "ok" if abs(seconds) < NOTICEABLE else "warn" if abs(seconds) < tolerance else "fail"
    remedy = "" if verdict == "ok" else "set this machine's clock, and keep it right with NTP"
    yield Finding(verdict, "clock", f"{apart} {whose}'s", remedy)


def check_directory(settings: config.Settings, directory: dict[str, Any]) -> Iterator[Finding]:
    """Whether the CA has what we call, and we have what it wants (RFC 8555 section 7.1.1)."""
    wanted = ("newNonce", "newAccount", "newOrder", "revokeCert")
    if missing := [entry for entry in wanted if entry not in directory]:
        text = f"{settings.acme.directory} has no {', '.join(missing)}"
        yield Finding("fail", "CA", text, "is it an ACME directory? see [acme] directory")
        return
    yield Finding("ok", "CA", f"{config.ca_name(settings.acme.directory)} answers")
    terms = acme.meta(directory, "termsOfService")
    if terms and not settings.acme.agree_to_terms_of_service:
        remedy = f"read them; then set [acme] agree_to_terms_of_service = yes in {settings.file}"
        yield Finding("fail", "terms", f"not agreed to: {terms}", remedy)
    else:
        yield Finding("ok", "terms", f"agreed to: {terms}" if terms else "the CA has none")
    if about(directory).get("externalAccountRequired") and not settings.acme.eab_key_id:
        remedy = acme.REMEDIES["externalAccountRequired"]
        yield Finding("fail", "CA", "it serves only customers that it knows", remedy)
    profile, offered = settings.acme.profile, acme.meta(directory, "profiles") or {}
    if profile and profile not in offered:
        text = f"it has no profile {profile}, but {', '.join(offered) or 'none'}"
        yield Finding("fail", "CA", text, "correct [acme] profile, or take it out")


def about(directory: dict[str, Any]) -> dict[str, Any]:
    """What a CA says about itself: its directory's "meta", where it is one."""
    return directory["meta"] if isinstance(directory.get("meta"), dict) else {}


def check_identity(identity: dict[str, Any], changing: list[str]) -> Iterator[Finding]:
    """Whose the access key is, and what is known of what it may change.

    identity: the answer of GetCallerIdentity; changing: the scripts, of WRITES, that are to be run
    """
    calls = ", ".join(WRITES[script] for script in changing)
    if identity["IdentityType"] == "Account":
        text = f"{identity['Arn']}, the account itself: who has this key may do everything"
        yield Finding("warn", "access key", text, "make a RAM user with the policies in docs/ram-policies.md")
        yield Finding("ok", "rights", f"to change: {calls}, as the account itself may")
        return
    yield Finding("ok", "access key", str(identity["Arn"]))
    remedy = "give its user the policies in docs/ram-policies.md; a first certificate from a staging CA is the proof"
    yield Finding("warn", "rights", f"to change: {calls}: cannot be known without changing something", remedy)


def my_domains(cloud: alibaba.Client) -> dict[str, list[str]]:
    """This account's domains in Alibaba Cloud DNS, with the name servers that Alibaba has for each."""
    servers: dict[str, list[str]] = {}
    for page in range(1, 1000):
        answer = cloud.call(DescribeDomainsRequest, {"PageNumber": str(page), "PageSize": "100"}, brief=True)
        domains = answer.objects("Domains", "Domain")
        for domain in domains:
            hosts = domain.listed("DnsServers", "DnsServer") if "DnsServers" in domain else []
            name = domain.text("PunyCode", "") or domain.text("DomainName")
            servers[name] = [str(host).lower() for host in hosts]
        if not domains or len(servers) >= answer.number("TotalCount"):
            break
    return servers


class Place(NamedTuple):
    """Where a challenge's TXT value will stand. zone: None where it is not this account's to know"""

    name: str
    zone: str | None
    servers: tuple[dns.NameServer, ...]


def find_place(name: str, name_servers: dns.NameServers, zones: Iterable[str] | None) -> Place:
    """Where the TXT value for a challenge's name will stand: CNAMEs followed, as 05 does. zones: this account's"""
    target = name_servers.follow_cname(name)
    if zones is None:
        return Place(target, None, name_servers.for_name(target))
    zone = dns.longest_zone(target, zones)
    if not zone:
        remedy = "add the domain there, use a key of its account, or set [dns] provider = manual"
        raise Failure(f"none of this account's domains in Alibaba Cloud DNS holds {target}", remedy)
    return Place(target, zone, name_servers.for_zone(zone))


def check_delegation(zone: str, delegated: set[str], alibabas: list[str], asked: str) -> Finding:
    """Whether the world asks Alibaba about a zone.

    delegated: the zone's NS records; alibabas: those Alibaba has for it; asked: who told the NS records
    """
    text = f"{zone}: its name servers, by {asked}, are {', '.join(sorted(delegated)) or 'none'}"
    strangers = delegated - set(alibabas)
    if delegated and not strangers:
        return Finding("ok", "zone", text)
    # All strangers: what is added at Alibaba is seen by nobody. Some: it depends on whom the CA asks.
    verdict = "warn" if strangers < delegated else "fail"
    remedy = "name Alibaba's at the registrar, or set [dns] provider = manual"
    return Finding(verdict, "zone", f"{text}; but Alibaba's are {', '.join(alibabas) or 'none'}", remedy)


def check_port_53(name: str, servers: Iterable[dns.NameServer]) -> Iterator[Finding]:
    """Whether this machine can ask the name servers of a name, by UDP and by TCP: 05 asks every one of them."""
    for server in servers:
        if reason := dns.unanswered(name, server):
            remedy = "let UDP to port 53 out through the firewall, and see whether the server is up"
            yield Finding("fail", "port 53", f"{server} by UDP: {reason}", remedy)
        if reason := dns.unanswered(name, server, tcp=True):
            remedy = "let TCP to port 53 out through the firewall: long answers come by it"
            yield Finding("warn", "port 53", f"{server} by TCP: {reason}", remedy)


def check_old_values(place: Place) -> Iterator[Finding]:
    """The TXT values that are at a challenge's name already."""
    answers = [dns.txt_values(place.name, server) for server in place.servers]
    values = {value for answer in answers if isinstance(answer, frozenset) for value in answer}
    if len(values) > MANY_VALUES:
        remedy = "delete those that no program is waiting for; some CAs do not read so long an answer"
        yield Finding("warn", "TXT", f"{place.name} has {len(values)} values already", remedy)
    elif values:
        yield Finding("ok", "TXT", f"{place.name} has {len(values)} already; 05 leaves what is not its own")


def relevant_caa(name_servers: dns.NameServers, domain: str) -> tuple[str, list[tuple[int, str, str]]]:
    """The CAA records that count for a name, and where they are: its own, else the nearest above (RFC 8659 section 3).

    Each record is (flags, tag, value); ("", []) when there is none up to the top.
    """
    name = domain.removeprefix("*.")
    while name:
        if records := name_servers.records(name, "CAA"):
            # RFC 8659 section 4.1 wants ASCII; what is none will match no CA's name.
            return name, [
                (r.flags, r.tag.decode("latin-1").lower(), r.value.decode("latin-1")) for r in records
            ]
        name = name.partition(".")[2]
    return "", []


def caa_problem(
    records: list[tuple[int, str, str]], identities: list[str], wildcard: bool, account_url: str | None = None
) -> str | None:
    """Why CAA records keep a CA from issuing; None when they do not (RFC 8659 sections 4 and 5, RFC 8657).

    records: (flags, tag, value); identities: the names the CA goes by, "caaIdentities" in its directory's meta
    account_url: of our ACME account; None as long as there is none
    """
    for flags, tag, _ in records:
        if flags & 128 and tag not in ("issue", "issuewild", "iodef"):
            return f'"{tag}" is critical, and no CA may pass over what it does not know'
    # For a wildcard "issuewild" counts alone, where there is one; else "issue" counts for both.
    wild = [value for _, tag, value in records if tag == "issuewild"]
    values = wild if wildcard and wild else [value for _, tag, value in records if tag == "issue"]
    reasons = []
    for value in values:
        issuer, *parameters = (part.strip() for part in value.split(";"))
        limits = {key.strip(): text.strip() for key, _, text in (p.partition("=") for p in parameters)}
        methods = [method.strip() for method in limits.get("validationmethods", "dns-01").split(",")]
        account = limits.get("accounturi", account_url)
        if issuer.lower() not in identities:
            reasons.append(f"{issuer or 'nobody'} may issue")
        elif "dns-01" not in methods:
            reasons.append(f"{issuer} may issue by {', '.join(methods)} only")
        elif account != account_url:
            reasons.append(f"{issuer} may issue to the account {account} only")
        else:
            return None
    return "; ".join(reasons) or None


def check_caa(
    name_servers: dns.NameServers, domain: str, directory: dict[str, Any], account_url: str | None
) -> Finding | None:
    """Whether the CA may issue for a domain, as far as its CAA records go; None when it has none."""
    where, records = relevant_caa(name_servers, domain)
    if not records:
        return None
    named = about(directory).get("caaIdentities")
    identities = [str(identity).lower() for identity in named] if isinstance(named, list) else []
    problem = caa_problem(records, identities, domain.startswith("*."), account_url)
    if problem and not identities:
        text = (
            f"{domain}: {problem}, by the CAA records of {where}; this CA does not say which name it goes by"
        )
        return Finding("warn", "CAA", text, "ask the CA for that name, and compare")
    if problem:
        return Finding(
            "fail", "CAA", f"{domain}: {problem}, by the CAA records of {where}", acme.REMEDIES["caa"]
        )
    return Finding("ok", "CAA", f"{domain}: the CAA records of {where} let this CA issue")


def check_cdn_domain(cdn: alibaba.Client, domain: str) -> Finding:
    """Whether the CDN has a domain, and the domain leads to it. An unknown one is an ApiError."""
    answer = cdn.call(DescribeDomainCertificateInfoRequest, {"DomainName": domain}, brief=True)
    for info in answer.objects("CertInfos", "CertInfo"):
        if info.get("DomainCnameStatus", "ok") != "ok":
            text = f"{domain} is there, but its CNAME does not lead there: {info['DomainCnameStatus']}"
            return Finding("warn", "CDN", text, "add the CNAME record that the CDN's console shows")
    return Finding("ok", "CDN", f"{domain} is there")


def check_api_domain(gateway: alibaba.Client, group_id: str, domain: str) -> Finding:
    """Whether a domain is bound to the API group. One that is not, or an unknown group, is an ApiError."""
    answer = gateway.call(DescribeDomainRequest, {"GroupId": group_id, "DomainName": domain}, brief=True)
    remark = answer.get("DomainRemark") or "see it in the console"
    if answer.get("DomainBindingStatus") == "BOUND":  # Alibaba's word for a binding that is not in effect
        return Finding("fail", "API Gateway", f"{domain}: its binding is not in effect", remark)
    if answer.get("DomainLegalStatus") == "ABNORMAL":
        return Finding("warn", "API Gateway", f"{domain}: its legal status is abnormal", remark)
    if answer.get("DomainCNAMEStatus") == "UNRESOLVED":
        text = f"{domain} is bound, but its CNAME does not lead there"
        return Finding(
            "warn", "API Gateway", text, f"add a CNAME record to {answer.get('SubDomain', remark)}"
        )
    return Finding("ok", "API Gateway", f"{domain} is bound")


def look_at_ca(settings: config.Settings, report: Report) -> dict[str, Any]:
    """Tell about the CA; returns its directory, an empty one when there is none to be had."""
    with report.trying("CA"):
        # A directory is read without a signature: the key that a client is made with signs nothing here.
        ca = acme.connect(settings, x509.new_private_key("ec256"))
        report.tell(*check_directory(settings, ca.directory))
        date = ca.get(settings.acme.directory).headers.get("Date")
        report.tell(*check_clock("the CA", date, CA_TOLERANCE))
        return ca.directory
    return {}


def look_at_access_key(settings: config.Settings, report: Report) -> bool:
    """Tell whose key it is; returns whether Alibaba Cloud takes it."""
    needed = {
        "05": settings.dns.provider == "alidns",
        "07": settings.cdn.domains,
        "08": settings.apigateway.domains,
    }
    changing = [script for script, is_needed in needed.items() if is_needed]
    if not changing:
        report.tell(Finding("ok", "access key", "these settings need none"))
        return False
    before = report.failures
    with report.trying("access key"):
        sts = alibaba.connect(settings, "sts")
        with report.trying("access key"):
            report.tell(*check_identity(sts.call(GetCallerIdentityRequest, {}, brief=True), changing))
        # A refusal is dated too, and may be about the clock.
        report.tell(*check_clock("Alibaba Cloud", sts.date(), ALIBABA_TOLERANCE))
    return report.failures == before


def look_at_zones(
    settings: config.Settings, report: Report, name_servers: dns.NameServers, may_ask: bool
) -> list[Place]:
    """Tell about the zones of all names; returns where their challenges will stand. may_ask: with the access key"""
    zones = None
    if settings.dns.provider == "alidns" and may_ask:
        with report.trying("zone"):
            cloud = alibaba.connect(settings, "alidns")
            zones = my_domains(cloud)
    # A wildcard is proven at the name below it, so that the two have one place.
    bases = dict.fromkeys(domain.removeprefix("*.") for domain in settings.certificate.domains)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        finds = [pool.submit(find_place, f"_acme-challenge.{base}", name_servers, zones) for base in bases]
    places = {}
    for find in finds:
        with report.trying("zone"):
            places[find.result().name] = find.result()
    asked = "[dns] nameservers" if settings.dns.nameservers else "the DNS"
    for zone in dict.fromkeys(place.zone for place in places.values()):
        if zone and zones:
            with report.trying("zone"):
                records = name_servers.records(zone, "NS")
                delegated = {record.target.to_text(omit_final_dot=True).lower() for record in records}
                report.tell(check_delegation(zone, delegated, zones[zone], asked))
            with report.trying("rights"):
                cloud.call(DescribeDomainRecordsRequest, {"DomainName": zone, "PageSize": "1"}, brief=True)
                calls = f"DescribeDomains, DescribeDomainRecords of {zone}"
                report.tell(Finding("ok", "rights", f"to read: {calls}"))
    return list(places.values())


def look_at_name_servers(report: Report, places: list[Place]) -> None:
    """Tell whether the name servers can be asked, and what is at the challenges' names already."""
    before = report.failures
    # Each set of servers once, however many names it answers for.
    for servers, name in {place.servers: place.name for place in places}.items():
        report.tell(*check_port_53(name, servers))
    if places and report.failures == before:
        addresses = dict.fromkeys(str(server) for place in places for server in place.servers)
        report.tell(Finding("ok", "port 53", f"open to the name servers {', '.join(addresses)}"))
        for place in places:
            report.tell(*check_old_values(place))


def look_at_caa(
    settings: config.Settings, report: Report, name_servers: dns.NameServers, directory: dict[str, Any]
) -> None:
    """Tell which names have CAA records, and whether those let the CA issue."""
    domains = settings.certificate.domains
    account_url = None
    if settings.state.exists("account.json"):
        account_url = settings.state.read_json("account.json", "03_new_account.py").get("account_url")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looks = [pool.submit(check_caa, name_servers, domain, directory, account_url) for domain in domains]
    without = 0
    for look in looks:
        with report.trying("CAA"):
            if finding := look.result():
                report.tell(finding)
            else:
                without += 1
    if without:
        report.tell(
            Finding("ok", "CAA", f"{without} of {len(domains)} names have no CAA record: any CA may issue")
        )


def look_at_services(settings: config.Settings, report: Report) -> None:
    """Tell about the domains of the CDN and of API Gateway."""
    for domain in settings.cdn.domains:
        with report.trying("CDN", domain):
            report.tell(check_cdn_domain(alibaba.connect(settings, "cdn"), domain))
    for domain in settings.apigateway.domains:
        with report.trying("API Gateway", domain):
            gateway, group_id = (
                alibaba.connect(settings, "apigateway"),
                settings.need("apigateway", "group_id"),
            )
            report.tell(check_api_domain(gateway, group_id, domain))


def main(settings: config.Settings) -> None:
    settings.need("certificate", "domains")
    report = Report()
    report.tell(Finding("ok", "Python", sys.version.partition(" ")[0]))
    report.tell(check_packages((Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8")))
    if report.failures:
        raise Failure(
            "nothing more can be checked without these packages", "install them; then run this again"
        )
    with show.hushed():
        report.tell(*check_settings(settings))
        with report.trying("account"):
            # A state folder belongs to one CA, and is of no more use when its account is deactivated.
            if settings.state.exists("account.json"):
                acme.load_account(settings)
        directory = look_at_ca(settings, report)
        may_ask = look_at_access_key(settings, report)
        name_servers = dns.NameServers(settings.dns.nameservers)
        places = look_at_zones(settings, report, name_servers, may_ask)
        look_at_name_servers(report, places)
        look_at_caa(settings, report, name_servers, directory)
        if may_ask:
            look_at_services(settings, report)
    if report.failures:
        remedy = "mend what is marked fail, from the top down; then run this again"
        raise Failure(f"{report.failures} of these checks failed", remedy)
    show.next_step("01_create_account_key.py")


if __name__ == "__main__":
    config.run(main, __doc__, changes_nothing=True)
