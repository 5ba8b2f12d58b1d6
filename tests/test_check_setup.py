"""00_check_setup.py: what it finds, what it says of it, and that it changes nothing."""

import contextlib
import io
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
from canned_server import CannedServer
from conftest import SCRIPTS, Learner, clean_environment, load_script, open_account

from common import alibaba, config
from common import dns as our_dns
from common.failure import Failure
from common.state import State
from lab import Lab
from lab.alibaba import ApiError

READS = {
    "GetCallerIdentity",
    "DescribeDomains",
    "DescribeDomainRecords",
    "DescribeDomainCertificateInfo",
    "DescribeDomain",
}

NO_OTHER_CREDENTIALS = {
    "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
    "ALIBABA_CLOUD_CLI_PROFILE_DISABLED": "true",
    "HOME": "/nonexistent",
}


class Line(NamedTuple):
    verdict: str
    about: str
    text: str


def lines(out: str) -> list[Line]:
    found = [re.fullmatch(r"(ok|warn|fail) +(\S+(?: \S+)*)  +(.+)", line) for line in out.splitlines()]
    assert all(found), out
    return [Line(*match.groups()) for match in found if match]


def check(learner: Learner, code: int = 1) -> list[Line]:
    """Run the script within this process; whatever is not ok must say what to do."""
    out = io.StringIO()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALIBABA_CLOUD_")}
    environment = {**kept, **NO_OTHER_CREDENTIALS, **learner.environment}
    with mock.patch.dict(os.environ, environment, clear=True), contextlib.redirect_stdout(out):
        try:
            load_script("00").main(config.load(learner.ini))
            found = 0
        except Failure as failure:
            found = failure.exit_code
    told = lines(out.getvalue())
    assert found == code
    assert any(line.verdict == "fail" for line in told) == (code == 1)
    assert all("What to do: " in line.text for line in told if line.verdict != "ok")
    return told


def the(told: list[Line], verdict: str, about: str) -> str:
    """The texts of the lines with this verdict on this subject; there must be one at least."""
    texts = [line.text for line in told if (line.verdict, line.about) == (verdict, about)]
    assert texts, f"no {verdict} about {about} in {told}"
    return "\n".join(texts)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("00")


def test_in_a_good_setup_nothing_fails_and_each_part_is_told_of(learner: Learner):
    told = lines(learner.run("00").out)
    assert [line.verdict for line in told if line.verdict != "ok"] == [
        "warn"
    ]  # the rights to change something
    subjects = (
        "Python",
        "packages",
        "settings",
        "CA",
        "terms",
        "clock",
        "access key",
        "zone",
        "rights",
        "port 53",
    )
    assert {line.about for line in told} == {*subjects, "TXT", "CAA", "CDN", "API Gateway"}
    assert the(told, "ok", "clock") == "agrees with the CA's\nagrees with Alibaba Cloud's"
    assert "user/learner" in the(told, "ok", "access key")
    assert "cannot be known without changing something" in the(told, "warn", "rights")
    assert "[dns] nameservers" in the(told, "ok", "zone")
    assert "_acme-challenge.example.test has 1 already" in the(told, "ok", "TXT")


def test_it_changes_nothing_and_makes_no_call_that_could(learner: Learner, lab: Lab):
    for prepare in (lambda learner: None, open_account):
        prepare(learner)
        before, calls = files(learner.folder), len(lab.cloud.calls)
        records = {zone: lab.cloud.dns.records(zone) for zone in lab.cloud.dns.zone_names()}
        orders = (lab.directory / "pebble.log").read_text().count("order")
        learner.run("00")
        assert files(learner.folder) == before
        assert {call.action for call in lab.cloud.calls[calls:]} == READS
        assert {zone: lab.cloud.dns.records(zone) for zone in lab.cloud.dns.zone_names()} == records
        assert (lab.directory / "pebble.log").read_text().count("order") == orders


def test_it_prints_no_secret_and_no_exchange(learner: Learner, lab: Lab):
    run = learner.run("00")
    assert lab.access_key.access_key_secret not in run.all
    assert "-->" not in run.all
    assert run.err.splitlines()[0].startswith("settings ")


def test_it_can_be_run_while_another_script_is_at_work(learner: Learner):
    open_account(learner)
    with State(learner.state).lock():
        learner.run("00")


def test_terms_that_are_not_agreed_to(learner: Learner):
    learner.settings(acme={"agree_to_terms_of_service": "no"})
    assert "agree_to_terms_of_service = yes" in the(check(learner), "fail", "terms")


def test_a_ca_that_does_not_answer_keeps_no_other_check_from_being_made(learner: Learner):
    learner.settings(acme={"directory": "https://127.0.0.1:1/dir"})
    told = check(learner)
    assert "refused" in the(told, "fail", "CA")
    assert the(told, "ok", "zone") and the(told, "ok", "CDN") and the(told, "ok", "CAA")


@pytest.mark.parametrize(
    ("members", "settings", "words"),
    [
        ({"newAccount": None}, {}, "no newAccount"),
        ({"meta": {"externalAccountRequired": True}}, {}, "eab_key_id"),
        (
            {"meta": {"profiles": {"classic": "90 days"}}},
            {"profile": "short"},
            "no profile short, but classic",
        ),
        ({"meta": "nonsense"}, {"profile": "short"}, "no profile short, but none"),
    ],
)
def test_what_a_directory_lacks_or_wants(
    script: Any, tmp_path: Path, members: dict, settings: dict, words: str
):
    names = ("newNonce", "newAccount", "newOrder", "revokeCert")
    directory = {name: f"https://ca.test/{name}" for name in names} | members
    directory = {name: value for name, value in directory.items() if value}
    chosen = config.Settings(file=tmp_path / "acme.ini", acme=config.Acme(**settings))
    findings = list(script.check_directory(chosen, directory))
    assert [finding.verdict for finding in findings if words in finding.text + finding.remedy] == ["fail"]


def test_a_ca_with_a_directory_of_another_kind(learner: Learner, tmp_path: Path):
    with CannedServer(tmp_path) as server:
        learner.settings(acme={"directory": f"{server.base}/dir", "ca_bundle": server.ca_bundle})
        assert "has no newAccount, revokeCert" in the(check(learner), "fail", "CA")


@pytest.mark.parametrize(
    ("minutes", "verdict"), [(0, "ok"), (2, "warn"), (-2, "warn"), (16, "fail"), (-16, "fail")]
)
def test_a_clock_is_judged_by_what_the_server_tolerates(script: Any, minutes: int, verdict: str):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(minutes=minutes), usegmt=True)
    (finding,) = script.check_clock("Alibaba Cloud", date, script.ALIBABA_TOLERANCE)
    assert finding.verdict == verdict
    if minutes:
        assert ("behind" if minutes > 0 else "ahead of") in finding.text


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Nov 2026"])
def test_a_server_without_a_usable_date_says_nothing_about_the_clock(script: Any, date: str | None):
    assert list(script.check_clock("the CA", date, 300)) == []


def test_a_refusal_because_of_the_clock_is_told_beside_the_clock(learner: Learner, lab: Lab):
    lab.cloud.fail_next(
        "GetCallerIdentity", ApiError("InvalidTimeStamp.Expired", "Specified time stamp is expired.")
    )
    told = check(learner)
    assert "this machine's clock is wrong" in the(told, "fail", "access key")
    assert "agrees with Alibaba Cloud's" in the(told, "ok", "clock")


def test_no_credentials_a_wrong_secret_and_an_unknown_key(learner: Learner, lab: Lab):
    wrong = {**lab.environment(), "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "not the secret of this key"}
    unknown = {**wrong, "ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIunknown"}
    for environment, words in (
        ({}, "no Alibaba Cloud credentials"),
        (wrong, "does not belong"),
        (unknown, "unknown"),
    ):
        learner.environment = environment
        told = check(learner)
        assert words in the(told, "fail", "access key")
        # What needs no key is still looked at; what needs one is not guessed.
        assert the(told, "ok", "port 53")
        assert not any(line.about in ("CDN", "API Gateway", "rights") for line in told)


@pytest.mark.parametrize(
    ("forbidden", "about"),
    [
        ("alidns:DescribeDomains", "zone"),
        ("alidns:DescribeDomainRecords", "rights"),
        ("cdn:DescribeDomainCertificateInfo", "CDN"),
        ("apigateway:DescribeDomain", "API Gateway"),
    ],
)
def test_each_read_that_the_key_may_not_do(learner: Learner, lab: Lab, forbidden: str, about: str):
    allowed = {
        "alidns:DescribeDomains",
        "alidns:DescribeDomainRecords",
        "cdn:DescribeDomainCertificateInfo",
        "apigateway:DescribeDomain",
    }
    key = lab.cloud.ram.add_access_key(actions=allowed - {forbidden})
    learner.environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
    }
    text = the(check(learner), "fail", about)
    assert f"Forbidden.RAM on {forbidden.partition(':')[2]}" in text
    assert "docs/ram-policies.md" in text


def test_a_temporary_key_is_a_roles(learner: Learner, lab: Lab):
    key = lab.cloud.ram.add_sts_token()
    learner.environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        "ALIBABA_CLOUD_SECURITY_TOKEN": key.security_token or "",
    }
    assert "assumed-role/" in the(check(learner, code=0), "ok", "access key")


def test_of_the_accounts_own_key_it_is_known_that_it_may_do_everything(script: Any):
    identity = {"IdentityType": "Account", "Arn": "acs:ram::1:root"}
    told = list(script.check_identity(identity, ["05"]))
    assert [(finding.verdict, finding.about) for finding in told] == [
        ("warn", "access key"),
        ("ok", "rights"),
    ]


def test_manual_dns_without_services_needs_no_key(learner: Learner):
    learner.settings(
        dns={"provider": "manual"}, cdn={"domains": None}, apigateway={"domains": None, "group_id": None}
    )
    learner.environment = {}
    told = check(learner, code=0)
    assert "need none" in the(told, "ok", "access key")
    assert not any(line.about in ("zone", "rights") for line in told)
    assert the(told, "ok", "TXT")


def test_a_domain_that_the_account_does_not_have(learner: Learner):
    learner.settings(
        domains=["www.partner.test", "partner.test", "shop.workshop.com.test"], cdn={"domains": None}
    )
    told = check(learner)
    assert "holds _acme-challenge.partner.test" in the(told, "fail", "zone")
    # A CNAME leads from the partner's zone to ours; a zone may have two labels above it.
    zones = the(told, "ok", "zone")
    assert "example.test: " in zones and "workshop.com.test: " in zones


def test_a_domain_that_is_delegated_elsewhere(learner: Learner, lab: Lab):
    lab.cloud.dns.add_zone("moved.test", dns_servers=("vip1.alidns.com", "vip2.alidns.com"))
    learner.settings(domains=["moved.test"], cdn={"domains": None}, apigateway={"domains": None})
    text = the(check(learner), "fail", "zone")
    assert "ns1.lab.test, ns2.lab.test; but Alibaba's are vip1.alidns.com, vip2.alidns.com" in text
    assert "registrar" in text


@pytest.mark.parametrize(
    ("delegated", "verdict"),
    [
        ({"a.test"}, "ok"),
        ({"a.test", "b.test"}, "ok"),
        ({"a.test", "x.test"}, "warn"),
        ({"x.test"}, "fail"),
        (set(), "fail"),
    ],
)
def test_a_delegation_to_alibaba_to_others_and_to_both(script: Any, delegated: set[str], verdict: str):
    finding = script.check_delegation("example.test", delegated, ["a.test", "b.test"], "the DNS")
    assert finding.verdict == verdict


def test_a_name_server_that_cannot_be_asked(learner: Learner, lab: Lab):
    learner.settings(dns={"nameservers": f"{lab.nameservers[0]}, 127.0.0.1:1"})
    told = check(learner)
    assert "127.0.0.1:1 by UDP" in the(told, "fail", "port 53")
    assert "127.0.0.1:1 by TCP" in the(told, "warn", "port 53")
    assert lab.nameservers[0] not in the(told, "fail", "port 53")


def test_many_old_txt_values_are_a_warning_and_a_few_are_not(learner: Learner, lab: Lab):
    lab.cloud.dns.add_zone("full.test")
    for number in range(9):
        lab.cloud.dns.add_record("full.test", "_acme-challenge", "TXT", f"old-{number}")
    learner.settings(
        domains=["full.test", "example.test"], cdn={"domains": None}, apigateway={"domains": None}
    )
    told = check(learner, code=0)
    assert "_acme-challenge.full.test has 9 values" in the(told, "warn", "TXT")
    assert "_acme-challenge.example.test has 1 already" in the(told, "ok", "TXT")


def test_domains_that_the_services_do_not_have_or_the_certificate_does_not_cover(learner: Learner):
    learner.settings(
        domains=["example.test", "*.example.test"],
        cdn={"domains": "www.example.test, nosuch.example.test, .wild.example.test"},
        apigateway={"domains": "nosuch.example.test"},
    )
    told = check(learner)
    assert "nosuch.example.test: InvalidDomain.NotFound" in the(told, "fail", "CDN")
    assert "www.example.test is there" in the(told, "ok", "CDN")
    assert "nosuch.example.test: NotFoundDomain" in the(told, "fail", "API Gateway")
    assert "will not cover *.wild.example.test" in the(told, "fail", "settings")


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ({}, "ok"),
        (
            {
                "DomainBindingStatus": "BINDING",
                "DomainCNAMEStatus": "RESOLVED",
                "DomainLegalStatus": "NORMAL",
            },
            "ok",
        ),
        ({"DomainBindingStatus": "BOUND"}, "fail"),
        ({"DomainLegalStatus": "ABNORMAL", "DomainRemark": "no ICP filing"}, "warn"),
        ({"DomainCNAMEStatus": "UNRESOLVED"}, "warn"),
    ],
)
def test_the_state_of_an_api_domain(script: Any, state: dict[str, str], verdict: str):
    gateway = SimpleNamespace(call=lambda *_args, **_kwargs: state)
    assert script.check_api_domain(gateway, "group", "api.example.test").verdict == verdict


@pytest.mark.parametrize(("status", "verdict"), [("ok", "ok"), ("cname_error", "warn")])
def test_a_cdn_domain_whose_cname_does_not_lead_to_the_cdn(script: Any, status: str, verdict: str):
    info = alibaba.Members(DomainCnameStatus=status)
    answer = alibaba.Members(CertInfos=alibaba.Members(CertInfo=[info]))
    cdn = SimpleNamespace(call=lambda *_, **__: answer)
    assert script.check_cdn_domain(cdn, "www.example.test").verdict == verdict


def test_a_state_folder_of_another_ca_and_of_a_deactivated_account(learner: Learner):
    open_account(learner)
    state, account = State(learner.state), learner.json("account.json")
    for change, words in (
        ({"directory": "https://ca.test/dir"}, "belongs to"),
        ({"status": "deactivated"}, "for good"),
    ):
        state.write_json("account.json", account | change)
        assert words in the(check(learner), "fail", "account")


# RFC 8659: which records count, and what they say.

ISSUE, OTHER = (0, "issue", "ca.test"), (0, "issue", "other.test")


@pytest.mark.parametrize(
    ("records", "wildcard", "allowed"),
    [
        ([ISSUE], False, True),
        ([OTHER], False, False),
        ([OTHER, ISSUE], False, True),
        ([(0, "issue", "CA.test ; policy=x")], False, True),
        ([(0, "issue", ";")], False, False),
        ([(0, "issue", "")], False, False),
        ([(0, "iodef", "mailto:x@example.test")], False, True),
        ([ISSUE], True, True),
        ([ISSUE, (0, "issuewild", ";")], True, False),
        ([ISSUE, (0, "issuewild", ";")], False, True),
        ([OTHER, (0, "issuewild", "ca.test")], True, True),
        ([OTHER, (0, "issuewild", "ca.test")], False, False),
        ([(0, "issuewild", "other.test")], False, True),
        ([ISSUE, (128, "novelty", "x")], False, False),
        ([ISSUE, (0, "novelty", "x")], False, True),
        ([(128, "issue", "ca.test")], False, True),
        ([(0, "issue", "ca.test; validationmethods=http-01")], False, False),
        ([(0, "issue", "ca.test; validationmethods=http-01,dns-01")], False, True),
        ([(0, "issue", "ca.test; accounturi=https://ca.test/1")], False, True),
        ([(0, "issue", "ca.test; accounturi=https://ca.test/2")], False, False),
        ([(0, "issue", "ca.test; accounturi=https://ca.test/2"), ISSUE], False, True),
    ],
)
def test_what_caa_records_allow(script: Any, records: list, wildcard: bool, allowed: bool):
    problem = script.caa_problem(records, ["ca.test"], wildcard, "https://ca.test/1")
    assert (problem is None) == allowed


def test_the_caa_records_that_count_are_the_nearest_ones_above_and_a_cname_is_followed(
    script: Any, learner: Learner, lab: Lab
):
    dns = lab.cloud.dns
    dns.add_zone("caa.test")
    dns.add_record("caa.test", "@", "CAA", '0 issue "top.test"')
    dns.add_record("caa.test", "shop", "CAA", '0 issue "shop.test"')
    dns.add_record("caa.test", "alias", "CNAME", "shop.caa.test")
    name_servers = our_dns.NameServers(config.load(learner.ini).dns.nameservers)
    found = {
        name: script.relevant_caa(name_servers, name)[1]
        for name in ("*.caa.test", "a.b.caa.test", "x.shop.caa.test", "alias.caa.test", "example.test")
    }
    top, shop = [(0, "issue", "top.test")], [(0, "issue", "shop.test")]
    assert found == {
        "*.caa.test": top,
        "a.b.caa.test": top,
        "x.shop.caa.test": shop,
        "alias.caa.test": shop,
        "example.test": [],
    }
    # A CA that says its name can be compared with; Pebble, of 2.4, cannot.
    named = {"meta": {"caaIdentities": ["Top.test"]}}
    assert script.check_caa(name_servers, "*.caa.test", named, None).verdict == "ok"
    assert script.check_caa(name_servers, "shop.caa.test", named, None).verdict == "fail"
    assert script.check_caa(name_servers, "shop.caa.test", {}, None).verdict == "warn"
    assert script.check_caa(name_servers, "example.test", named, None) is None


def test_packages_that_are_missing_or_of_another_version(script: Any):
    assert script.check_packages("pytest==0.1\n# rich\n").verdict == "warn"
    finding = script.check_packages("no-such-package==1.0\nrequests==2.0\n")
    assert (finding.verdict, finding.text) == ("fail", "missing: no-such-package")


def test_without_any_package_it_says_which_are_missing_and_no_traceback(learner: Learner):
    # -S: without site-packages
    run = subprocess.run(
        [sys.executable, "-S", str(SCRIPTS["00"]), "--config", str(learner.ini)],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "missing: cryptography, requests, dnspython" in the(lines(run.stdout), "fail", "packages")
    assert "Traceback" not in run.stderr


def test_an_old_python_is_told_so(tmp_path: Path):
    code = f"import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPTS['00'])!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "3.10 or newer" in the(lines(run.stdout), "fail", "Python")
    assert run.stderr == ""


def test_no_names_is_a_matter_of_the_settings(learner: Learner):
    learner.settings(domains=())
    learner.run("00", code=2)
