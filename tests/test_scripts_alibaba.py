"""The scripts that change Alibaba Cloud: 05 (DNS), 07 (CDN) and 08 (API Gateway) in the lab."""

import datetime
import hashlib
import json
import queue
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import dns.flags
import dns.message
import dns.rrset
import pytest
from conftest import Learner, dns_contents, load_script
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from common import acme, alibaba, install, jws
from common.failure import Failure
from lab import Lab
from lab.alibaba import Call
from lab.alibaba.errors import ApiError

NEVER = 100_000.0  # a name server this many seconds behind has none of our records
JOURNAL = "pending/dns_records.json"


@pytest.fixture
def calls(lab: Lab) -> Callable[..., list[Call]]:
    """The calls that the cloud has answered since this test began, all or those of one action."""
    before = len(lab.cloud.calls)

    def since(action: str | None = None) -> list[Call]:
        return [call for call in lab.cloud.calls[before:] if action in (None, call.action)]

    return since


@pytest.fixture
def blocked_name_server(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The second name server does not hear of new records; its address."""
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        yield lab.nameservers[1]


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """What a script says on standard error, up to the line that holds the text."""
    assert process.stderr
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the script ended without saying {text!r}:\n{said}")


def read_rest(process: "subprocess.Popen[str]") -> str:
    assert process.stderr and process.stdout
    rest = process.stderr.read()
    process.stdout.read()
    process.wait(30)
    assert "Traceback" not in rest, rest
    return rest


def kill_while_waiting(learner: Learner) -> None:
    process = learner.start("05")
    read_until(process, "waiting for TXT")
    process.kill()
    read_rest(process)


def kill_at(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, action: str
) -> "Callable[[subprocess.Popen[str]], None]":
    """Kill a script the moment the cloud has done an action, before its answer is sent."""
    processes: queue.Queue[subprocess.Popen[str]] = queue.Queue()

    def on_call(call: Call) -> None:
        if call.action == action:
            process = processes.get(timeout=30)
            process.kill()
            process.wait(30)
            processes.put(process)

    monkeypatch.setattr(lab.cloud, "on_call", on_call)
    return processes.put


def challenge_values(learner: Learner) -> dict[str, set[str]]:
    """The TXT values that the CA wants for the pending order, worked out anew: name -> values."""
    key = serialization.load_pem_private_key((learner.state / "account.key").read_bytes(), None)
    kid = learner.json("account.json")["account_url"]
    ca = acme.Client(learner.lab.directory_url, key, kid, str(learner.lab.ca_bundle))  # type: ignore[arg-type]
    order = ca.post_as_get(learner.json("pending/order.json")["order_url"]).body
    values: dict[str, set[str]] = {}
    for url in order["authorizations"]:
        authorization = ca.post_as_get(url).body
        token = next(c["token"] for c in authorization["challenges"] if c["type"] == "dns-01")
        digest = hashlib.sha256(f"{token}.{jws.thumbprint(ca.key)}".encode()).digest()
        values.setdefault(authorization["identifier"]["value"], set()).add(jws.b64url(digest))
    return values


def status_of_order(learner: Learner) -> str:
    key = serialization.load_pem_private_key((learner.state / "account.key").read_bytes(), None)
    kid = learner.json("account.json")["account_url"]
    ca = acme.Client(learner.lab.directory_url, key, kid, str(learner.lab.ca_bundle))  # type: ignore[arg-type]
    return ca.post_as_get(learner.json("pending/order.json")["order_url"]).body["status"]


# 05: where records go, and that they go again


def test_05_shows_both_values_of_apex_and_wildcard_at_one_name(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = orderer("example.test", "*.example.test")
    wanted = challenge_values(learner)["example.test"]
    assert len(wanted) == 2
    seen: list[set[str]] = []

    def on_query(query: Any) -> None:
        if query.type == "TXT":
            records = lab.cloud.dns.records("example.test")
            seen.append({r.value for r in records if (r.rr, r.type) == ("_acme-challenge", "TXT")})

    monkeypatch.setattr(lab.dns_servers[1], "on_query", on_query)
    before = dns_contents(lab)
    learner.run("05")
    # The last two questions are the CA's, one for each authorization.
    assert [wanted <= values for values in seen[-2:]] == [True, True]
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before


def test_05_puts_each_record_into_its_longest_zone_or_where_a_cname_points(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer(
        "a.b.example.test",
        "shop.workshop.com.test",
        "workshop.com.test",
        "www.dev.example.test",
        "dev.example.test",
        "www.partner.test",
        "bücher.example.test",
    )
    before = dns_contents(lab)
    learner.run("05")
    added = {
        (call.parameters["DomainName"], call.parameters["RR"], call.parameters["Type"])
        for call in calls("AddDomainRecord")
    }
    assert added == {
        ("example.test", "_acme-challenge.a.b", "TXT"),
        ("workshop.com.test", "_acme-challenge.shop", "TXT"),
        ("workshop.com.test", "_acme-challenge", "TXT"),
        ("dev.example.test", "_acme-challenge.www", "TXT"),
        ("dev.example.test", "_acme-challenge", "TXT"),
        ("example.test", "partner.validation", "TXT"),
        ("example.test", "_acme-challenge.xn--bcher-kva", "TXT"),
    }
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_finds_a_zone_on_a_later_page(new_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = new_lab()
    # The service lists the newest first, so the zone that is needed comes last.
    for number in range(250):
        lab.cloud.dns.add_zone(f"more{number}.test", account="learner")
    learner = Learner(tmp_path / "learner", lab, domains=["www.example.test"])
    learner.series("01", "02", "03", "04", "05")
    pages = [c.parameters["PageNumber"] for c in lab.cloud.calls if c.action == "DescribeDomains"]
    assert pages == ["1", "2", "3"]
    assert status_of_order(learner) == "ready"


def test_05_finds_a_zone_that_the_account_holds_by_its_unicode_name(
    new_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = new_lab()
    lab.cloud.dns.add_zone("bücher.test", account="learner")
    learner = Learner(tmp_path / "learner", lab, domains=["bücher.test", "*.bücher.test"])
    before = dns_contents(lab)
    learner.series("01", "02", "03", "04", "05")
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before


def test_05_proves_twenty_names_at_once(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    names = [f"n{number:02}.zone{number:02}.test" for number in range(1, 19)]
    learner = orderer(*names, "example.test", "*.example.test")
    before = dns_contents(lab)
    learner.run("05")
    assert status_of_order(learner) == "ready"
    assert len(calls("AddDomainRecord")) == len(calls("DeleteDomainRecord")) == 20
    # All are there before the first goes.
    assert [call.action for call in calls() if call.action != "DescribeDomains"] == (
        ["AddDomainRecord"] * 20 + ["DeleteDomainRecord"] * 20
    )
    assert dns_contents(lab) == before


def test_05_deletes_by_record_id_only(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("www.example.test")
    learner.run("05")
    assert {call.action for call in calls()} == {"DescribeDomains", "AddDomainRecord", "DeleteDomainRecord"}


def test_05_waits_for_the_name_server_that_lags(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = orderer("www.example.test")
    monkeypatch.setattr(lab.dns_servers[1], "lag", 1.5)
    run = learner.run("05")
    # The CA asks the server that lags: an answer given too early would have made the order invalid.
    assert status_of_order(learner) == "ready"
    assert f"waiting for TXT _acme-challenge.www.example.test on {lab.nameservers[1]}" in run.err
    assert f"on {lab.nameservers[0]}" not in run.err


def test_05_gives_up_waiting_when_the_settings_say_so(
    orderer: Callable[..., Learner], lab: Lab, blocked_name_server: str
) -> None:
    learner = orderer("www.example.test", "www.dev.example.test", dns={"timeout": "0.5"})
    before = dns_contents(lab)
    run = learner.run("05", code=1)
    error = run.err[run.err.index("error:") :]
    assert f"_acme-challenge.www.example.test on {blocked_name_server}" in error
    assert f"_acme-challenge.www.dev.example.test on {blocked_name_server}" in error
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()
    assert status_of_order(learner) == "pending"


def test_05_adds_nothing_when_the_order_is_ready(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("www.example.test")
    first = learner.run("05")
    known = len(calls())
    second = learner.run("05")
    assert second.out == first.out
    assert len(calls()) == known


def test_05_skips_authorizations_that_are_valid_already(new_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = new_lab(authz_reuse=100)
    learner = Learner(tmp_path / "learner", lab, domains=["www.example.test"])
    learner.series("01", "02", "03", "04", "05", "06")
    learner.settings(domains=["www.example.test", "static.example.test"])
    before = len(lab.cloud.calls)
    learner.series("02", "04", "05")
    added = [c.parameters["RR"] for c in lab.cloud.calls[before:] if c.action == "AddDomainRecord"]
    assert added == ["_acme-challenge.static"]
    before = len(lab.cloud.calls)
    learner.run("06")
    learner.series("02", "04", "05", "06")
    assert lab.cloud.calls[before:] == []


def test_05_chooses_the_challenge_by_type_and_passes_over_what_it_does_not_know() -> None:
    script = load_script("05")
    authorization = {
        "status": "pending",
        "identifier": {"type": "dns", "value": "example.test"},
        "challenges": [
            {"type": "dns-persist-01", "url": "https://ca.test/1", "issuer-domain-names": ["ca.test"]},
            {"type": "http-01", "url": "https://ca.test/2", "token": "http"},
            {"type": "dns-01", "url": "https://ca.test/3"},
            "what is this",
            {"type": "dns-01", "url": "https://ca.test/4", "token": "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ"},
            {"type": "tls-alpn-01", "url": "https://ca.test/5", "token": "alpn"},
        ],
    }

    class Ca:
        key = ec.generate_private_key(ec.SECP256R1())

        def post_as_get(self, url: str, brief: bool = False) -> acme.Answer:
            return acme.Answer(url, 200, "OK", {}, authorization)

    challenges = script.pending_challenges(Ca(), ["https://ca.test/authorization"])
    assert [(c.url, c.name) for c in challenges] == [("https://ca.test/4", "_acme-challenge.example.test")]

    authorization["challenges"] = authorization["challenges"][:3]
    with pytest.raises(Failure, match=r"example\.test: .*dns-persist-01, http-01"):
        script.pending_challenges(Ca(), ["https://ca.test/authorization"])


# 05: what is not ours


def test_05_refuses_a_name_in_no_zone_of_the_account_and_counts_the_zones(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("www.example.test", "other.partner.test")
    before = dns_contents(lab)
    run = learner.run("05", code=2)
    mine = len(lab.cloud.dns.zone_names()) - 1  # partner.test is the one that is another account's
    error = run.err[run.err.index("error:") :]
    assert f"none of this account's {mine} domains" in error
    assert "_acme-challenge.other.partner.test" in error
    assert calls("AddDomainRecord") == []
    assert dns_contents(lab) == before


@pytest.mark.parametrize("domains", [("www.example.test",), ("example.test", "*.example.test")])
def test_05_leaves_a_record_with_the_very_same_value_that_somebody_else_made(
    orderer: Callable[..., Learner], lab: Lab, domains: tuple[str, ...]
) -> None:
    learner = orderer(*domains)
    name, values = next(iter(challenge_values(learner).items()))
    rr = f"_acme-challenge.{name}".removesuffix(".example.test")
    theirs = lab.cloud.dns.add_record("example.test", rr=rr, type="TXT", value=sorted(values)[0])
    before = dns_contents(lab)
    learner.run("05")
    assert status_of_order(learner) == "ready"
    assert theirs in {record[1] for record in dns_contents(lab)}
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_leaves_another_value_at_the_same_name(orderer: Callable[..., Learner], lab: Lab) -> None:
    learner = orderer("www.example.test")
    theirs = lab.cloud.dns.add_record(
        "example.test", rr="_acme-challenge.www", type="TXT", value="another client's, at work just now"
    )
    learner.run("05")
    assert status_of_order(learner) == "ready"
    assert theirs in {record[1] for record in dns_contents(lab)}


# 05: interrupted, killed, refused


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_05_takes_its_records_back_when_it_is_told_to_stop(
    orderer: Callable[..., Learner], lab: Lab, blocked_name_server: str, signal_number: signal.Signals
) -> None:
    learner = orderer("example.test", "*.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    # Where the tests run in the background, Ctrl-C is ignored, and children would inherit that.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = learner.start("05")
    finally:
        signal.signal(signal.SIGINT, previous)
    said = read_until(process, "waiting for TXT")
    assert len(dns_contents(lab) - before) == 3
    assert (learner.state / JOURNAL).exists()
    process.send_signal(signal_number)
    rest = read_rest(process)
    assert process.returncode == 1
    assert "error: interrupted" in rest
    assert blocked_name_server in said
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_cleans_up_and_goes_on_after_a_kill_while_records_exist(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = orderer("example.test", "*.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        kill_while_waiting(learner)
    left = dns_contents(lab) - before
    assert len(left) == 3
    journal = learner.json(JOURNAL)["entries"]
    assert {entry["record_id"] for entry in journal} == {record[1] for record in left}
    learner.run("05")
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


@pytest.mark.parametrize("number", ["02", "05"])
def test_while_05_is_at_work_no_other_script_gets_into_its_state_folder(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    learner = orderer("www.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        process = learner.start("05")
        read_until(process, "waiting for TXT")
        run = learner.run(number, code=1)
        assert f"another script is at work in {learner.state}" in run.err
    # The one that was there first has not been disturbed.
    read_rest(process)
    assert process.returncode == 0
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before


@pytest.mark.parametrize("action", ["AddDomainRecord", "DeleteDomainRecord"])
def test_05_cleans_up_after_a_kill_between_a_change_and_its_answer(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    learner = orderer("example.test", "*.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        started = kill_at(lab, patch, action)
        process = learner.start("05")
        started(process)
        read_rest(process)
    assert process.returncode not in (0, 1, 2)
    left = dns_contents(lab) - before
    journal = learner.json(JOURNAL)["entries"]
    # Nothing is in the zone that the journal does not know of.
    assert {(zone, rr, value) for zone, _, rr, _, value in left} <= {
        (entry["zone"], entry["rr"], entry["value"]) for entry in journal
    }
    learner.run("05")
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_cleans_up_after_a_kill_although_the_order_is_another_one_now(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = orderer("www.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        kill_while_waiting(learner)
    assert len(dns_contents(lab) - before) == 2
    learner.settings(domains=["static.example.test"], certificate={"key_type": "ec256"})
    learner.series("02", "04", "05")
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


@pytest.mark.parametrize("change", ["order gone", "by hand now"])
def test_05_takes_an_interrupted_run_s_records_back_although_it_has_nothing_to_prove_with_them(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    learner = orderer("www.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        kill_while_waiting(learner)
    assert len(dns_contents(lab) - before) == 1
    (learner.state / "pending/order.json").unlink()
    if change == "by hand now":
        learner.settings(dns={"provider": "manual"})
    assert "run 04_new_order.py first" in learner.run("05", code=2).err
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


@pytest.mark.parametrize("action", ["AddDomainRecord", "DeleteDomainRecord"])
def test_05_understands_what_a_lost_answer_leaves_behind(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]], action: str
) -> None:
    learner = orderer("www.example.test")
    before = dns_contents(lab)
    lab.cloud.lose_next_answer(action)
    learner.run("05")
    assert [call.code for call in calls(action)][0] == ""
    assert len(calls(action)) == 2
    assert status_of_order(learner) == "ready"
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_tries_again_when_the_service_is_busy(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("www.example.test")
    lab.cloud.fail_next("DescribeDomains", ApiError("InternalError", "Something failed.", 500))
    throttled = ApiError("Throttling.User", "Request was denied due to user flow control.", 400)
    lab.cloud.fail_next("AddDomainRecord", throttled)
    lab.cloud.fail_next("DeleteDomainRecord", ApiError("ServiceUnavailable", "Try again.", 503))
    run = learner.run("05")
    assert [call.code for call in calls("AddDomainRecord")] == ["Throttling.User", ""]
    assert "Throttling.User: again in" in run.err
    assert status_of_order(learner) == "ready"


@pytest.mark.parametrize(("ahead", "words"), [("5400", "90 minutes behind"), ("-7200", "120 minutes ahead")])
def test_05_says_by_how_much_this_machines_clock_is_off(
    orderer: Callable[..., Learner], lab: Lab, ahead: str, words: str
) -> None:
    learner = orderer("www.example.test")
    lab.faults.on(f"alibaba-clock={ahead}@DescribeDomains*1")
    run = learner.run("05", code=1)
    assert f"This machine's clock is {words}." in run.err
    assert "what to do: this machine's clock is wrong: set it" in run.err


def test_05_names_no_ttl_so_that_the_service_takes_one_that_the_zone_allows(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab()
    lab.cloud.dns.add_zone("slow.test", min_ttl=3600)
    key = alibaba.Credentials(lab.access_key.access_key_id, lab.access_key.access_key_secret)
    cloud = alibaba.Client(key, "cn-hangzhou", lab.alibaba_endpoint, str(lab.ca_bundle))
    load_script("05").add_txt_record(cloud, "slow.test", "_acme-challenge", "a value")
    assert [(record.rr, record.ttl) for record in lab.cloud.dns.records("slow.test")] == [
        ("_acme-challenge", 3600)
    ]


def test_05_takes_back_the_records_it_could_add_when_one_is_refused(
    orderer: Callable[..., Learner], lab: Lab
) -> None:
    learner = orderer("www.example.test", "static.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    lab.cloud.fail_next("AddDomainRecord", ApiError("QuotaExceeded.Record", "The quota is used up."))
    run = learner.run("05", code=1)
    assert "QuotaExceeded.Record on AddDomainRecord" in run.err
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_with_a_key_that_may_not_add_records_names_the_action(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("example.test", "*.example.test")
    use_key(learner, lab.cloud.ram.add_access_key(actions={"alidns:Describe*", "alidns:DeleteDomainRecord"}))
    before = dns_contents(lab)
    run = learner.run("05", code=1)
    error = run.err[run.err.index("error:") :]
    assert "Forbidden.RAM on AddDomainRecord" in error
    assert "RAM policy" in error
    # What will not change is not asked for again.
    assert len(calls("AddDomainRecord")) == 2
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_keeps_the_journal_when_it_may_not_delete(orderer: Callable[..., Learner], lab: Lab) -> None:
    learner = orderer("example.test", "*.example.test")
    use_key(learner, lab.cloud.ram.add_access_key(actions={"alidns:Describe*", "alidns:AddDomainRecord"}))
    before = dns_contents(lab)
    run = learner.run("05", code=1)
    error = run.err[run.err.index("error:") :]
    assert "2 TXT records are still in the zone" in error
    assert "Forbidden.RAM on DeleteDomainRecord" in error
    left = {record[1] for record in dns_contents(lab) - before}
    assert {entry["record_id"] for entry in learner.json(JOURNAL)["entries"]} == left
    learner.environment = lab.environment()
    learner.run("05")
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_05_takes_it_well_when_somebody_has_deleted_its_records_after_a_kill(
    orderer: Callable[..., Learner], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = orderer("www.example.test", "www.dev.example.test")
    before = dns_contents(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.dns_servers[1], "lag", NEVER)
        kill_while_waiting(learner)
    for record in dns_contents(lab) - before:
        lab.cloud.dns.actions["DeleteDomainRecord"]("learner", {"RecordId": record[1]})
    learner.settings(domains=["static.example.test"], certificate={"key_type": "ec256"})
    learner.series("02", "04", "05")
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


@pytest.fixture
def misled_ca(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the CA see another TXT value at a name than everybody else does."""

    def mislead(name: str) -> None:
        for server in lab.dns_servers:
            monkeypatch.setattr(server, "reply", answering(server.reply, name))

    def answering(reply: Callable[[bytes, str], bytes | None], name: str) -> Any:
        def answer(message: bytes, transport: str) -> bytes | None:
            query = dns.message.from_wire(message)
            # The CA asks as one asks a resolver; the scripts, which ask the servers themselves, do not.
            asked = query.question[0].name.to_text(omit_final_dot=True)
            if not query.flags & dns.flags.RD or asked != name:
                return reply(message, transport)
            response = dns.message.make_response(query)
            response.answer.append(dns.rrset.from_text(asked + ".", 1, "IN", "TXT", '"something else"'))
            return response.to_wire()

        return answer

    return mislead


def test_05_tells_the_ca_s_reason_for_each_name_it_refused(
    orderer: Callable[..., Learner], lab: Lab, misled_ca: Callable[[str], None]
) -> None:
    learner = orderer("www.example.test", "shop.workshop.com.test")
    misled_ca("_acme-challenge.shop.workshop.com.test")
    before = dns_contents(lab)
    run = learner.run("05", code=1)
    error = run.err[run.err.index("error:") :]
    assert "shop.workshop.com.test: unauthorized" in error
    assert "www.example.test: " not in error
    assert "04_new_order.py" in error[error.index("what to do:") :]
    assert run.out == ""
    assert dns_contents(lab) == before
    assert not (learner.state / JOURNAL).exists()


def test_after_an_invalid_order_05_tells_why_again_and_04_makes_a_new_one(
    orderer: Callable[..., Learner],
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    misled_ca: Callable[[str], None],
) -> None:
    learner = orderer("www.example.test")
    first = learner.json("pending/order.json")["order_url"]
    misled_ca("_acme-challenge.www.example.test")
    learner.run("05", code=1)
    monkeypatch.undo()
    again = learner.run("05", code=1)
    assert "www.example.test: unauthorized" in again.err
    assert "04_new_order.py" in again.err[again.err.index("what to do:") :]
    assert "invalid" in learner.run("06", code=1).err
    second = learner.run("04").out.strip()
    assert second != first
    learner.series("05", "06")


# 05: by hand


def test_05_by_hand_says_what_to_add_and_goes_on_when_dns_shows_it(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    learner = orderer("example.test", "*.example.test", "www.partner.test", dns={"provider": "manual"})
    learner.environment = {}  # no cloud account is needed for this
    wanted = challenge_values(learner)
    process = learner.start("05", "--quiet")
    assert process.stderr and process.stdout
    asked = set()
    for line in process.stderr:
        if match := re.fullmatch(r'\s*add\s+(\S+)\.\s+TXT\s+"(\S+)"\s*', line):
            name, value = match.groups()
            asked.add((name, value))
            rr = name.removesuffix(".example.test")
            lab.cloud.dns.add_record("example.test", rr=rr, type="TXT", value=value)
    out = process.stdout.read()
    assert process.wait(30) == 0
    expected = {("_acme-challenge.example.test", value) for value in wanted["example.test"]}
    expected |= {("partner.validation.example.test", value) for value in wanted["www.partner.test"]}
    assert asked == expected
    assert out == learner.json("pending/order.json")["order_url"] + "\n"
    assert status_of_order(learner) == "ready"
    assert calls() == []


# 07 and 08


def use_key(learner: Learner, key: Any) -> None:
    """Give the learner another access key."""
    learner.environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
    }
    if key.security_token:
        learner.environment["ALIBABA_CLOUD_SECURITY_TOKEN"] = key.security_token


def put_certificate(
    learner: Learner,
    *names: str,
    key: Any = None,
    other_key: bool = False,
    days: tuple[int, int] = (-1, 30),
) -> x509.Certificate:
    """Give the learner a certificate of a small CA of our own, as 06 would have; returns its leaf."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.timezone.utc)
    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The tests' own root")])

    def build(subject: x509.Name, public_key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        builder = x509.CertificateBuilder(ca_name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now + days[0] * day).not_valid_after(now + days[1] * day)
        return builder.add_extension(extension, critical=False).sign(ca_key, hashes.SHA256())

    root = build(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    leaf = build(x509.Name([]), leaf_key.public_key(), san)
    kept = ec.generate_private_key(ec.SECP256R1()) if other_key else leaf_key
    pem = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in (leaf, root)]
    learner.state.mkdir(mode=0o700, exist_ok=True)
    (learner.state / "certificate.pem").write_bytes(pem[0])
    (learner.state / "chain.pem").write_bytes(pem[1])
    (learner.state / "fullchain.pem").write_bytes(pem[0] + pem[1])
    (learner.state / "certificate.key").write_bytes(
        kept.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return leaf


def served(address: str, name: str, trusted: str) -> x509.Certificate:
    """What an edge serves for a name, to a client that trusts these roots and checks everything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=trusted)
    host, _, port = address.partition(":")
    with (
        socket.create_connection((host, int(port)), 10) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def root_of(learner: Learner) -> str:
    return learner.chain()[-1].public_bytes(serialization.Encoding.PEM).decode()


INSTALLERS = {
    # number: (the changing action, the domain in the settings, the edge, the parameter with the key)
    "07": ("SetCdnDomainSSLCertificate", "www.example.test", "cdn_edge", "SSLPri"),
    "08": ("SetDomainCertificate", "api.example.test", "apigateway_edge", "CertificatePrivateKey"),
}
each_installer = pytest.mark.parametrize("number", sorted(INSTALLERS))


@each_installer
def test_a_domain_serves_the_ca_s_certificate(holder: Learner, number: str) -> None:
    _, domain, edge, _ = INSTALLERS[number]
    run = holder.run(number)
    leaf = served(getattr(holder.lab, edge), domain, holder.lab.issuer_roots())
    assert leaf == holder.chain()[0]
    assert run.out == f"{domain} {holder.serial()}\n"


@each_installer
def test_a_second_install_sets_nothing(
    learner: Learner, calls: Callable[..., list[Call]], number: str
) -> None:
    action, domain, *_ = INSTALLERS[number]
    put_certificate(learner, domain)
    first = learner.run(number)
    assert len(calls(action)) == 1
    second = learner.run(number)
    assert len(calls(action)) == 1
    assert second.out == first.out
    assert "this one already" in second.err


@each_installer
def test_a_certificate_at_the_service_that_cannot_be_read_is_replaced(
    number: str,
) -> None:
    script = load_script(number)
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    info = alibaba.Members(ServerCertificateStatus="on", ServerCertificate=pem)
    answer = alibaba.Members(CertInfos=alibaba.Members(CertInfo=[info]), CertificateBody=pem)
    cloud = SimpleNamespace(call=lambda *_: answer)
    pair = install.KeyPair([], "", "")
    asked = (
        [cloud, "www.example.test", pair] if number == "07" else [cloud, "group", "www.example.test", pair]
    )
    assert script.shows_certificate(*asked) is False


@each_installer
def test_a_revoked_certificate_is_installed_with_a_word_about_it(holder: Learner, number: str) -> None:
    assert "is revoked" not in holder.run(number).err
    (holder.state / "revoked.json").write_text(
        json.dumps({"serial": holder.serial(), "reason": "unspecified"})
    )
    assert "note: this certificate is revoked" in holder.run(number).err


@each_installer
def test_a_renewed_certificate_replaces_the_one_before(learner: Learner, number: str) -> None:
    _, domain, edge, _ = INSTALLERS[number]
    old = put_certificate(learner, domain)
    learner.run(number)
    new = put_certificate(learner, domain)
    learner.run(number)
    assert served(getattr(learner.lab, edge), domain, root_of(learner)) == new != old


@each_installer
@pytest.mark.parametrize("kind", ["RSA", "EC"])
def test_certificate_and_key_travel_in_the_body_and_in_the_form_that_the_service_reads(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], number: str, kind: str
) -> None:
    action, domain, _, key_parameter = INSTALLERS[number]
    key = ec.generate_private_key(ec.SECP384R1()) if kind == "EC" else rsa.generate_private_key(65537, 2048)
    put_certificate(learner, domain, key=key)
    learner.run(number)
    (call,) = calls(action)
    assert (call.http_method, call.status) == ("POST", 200)
    assert key_parameter in call.parameters
    for made in calls():
        assert "PRIVATE" not in made.query and "BEGIN" not in made.query
        assert not {"SSLPub", "SSLPri", "CertificateBody", "CertificatePrivateKey"} & set(
            re.findall(r"[A-Za-z]+(?==)", made.query)
        )
    store = lab.cloud.cdn if number == "07" else lab.cloud.apigateway
    _, key_pem = store.certificate_for(domain)  # type: ignore[misc]
    assert key_pem.startswith(f"-----BEGIN {kind} PRIVATE KEY-----\n")


@each_installer
def test_certificate_names_are_legal_and_differ_for_each_certificate_and_domain(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], number: str
) -> None:
    action, domain, *_ = INSTALLERS[number]
    second = "static.example.test" if number == "07" else "second.example.test"
    lab.cloud.apigateway.bind_domain(lab.group_id, "second.example.test")
    section = "cdn" if number == "07" else "apigateway"
    learner.settings(**{section: {"domains": f"{domain}, {second}"}})
    for _ in range(2):
        put_certificate(learner, "*.example.test")
        learner.run(number)
    parameter = "CertName" if number == "07" else "CertificateName"
    names = [call.parameters[parameter] for call in calls(action)]
    assert len(names) == len(set(names)) == 4
    # 4 to 50 characters, a letter first: the stricter of the two services.
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]{3,49}", name) for name in names)


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "for other names": ({"names": ["other.example.test"]}, "does not cover {domain}"),
    "for the parent domain": ({"names": ["example.test"]}, "does not cover {domain}"),
    "for too deep a wildcard": ({"names": ["*.test", "*.{domain}"]}, "does not cover {domain}"),
    "expired": ({"days": (-30, -1)}, "expired on"),
    "not yet valid": ({"days": (1, 30)}, "valid only from"),
    "of another key": ({"other_key": True}, "is not the key of"),
}


@each_installer
@pytest.mark.parametrize("why", UNUSABLE)
def test_an_unusable_certificate_is_refused_before_any_call(
    learner: Learner, calls: Callable[..., list[Call]], number: str, why: str
) -> None:
    domain = INSTALLERS[number][1]
    options, told = UNUSABLE[why]
    names = [name.format(domain=domain) for name in options.get("names", [domain])]
    put_certificate(learner, *names, **{key: value for key, value in options.items() if key != "names"})
    run = learner.run(number, code=2)
    assert told.format(domain=domain) in run.err
    assert calls() == []
    assert run.out == ""


@each_installer
def test_one_domain_that_fails_does_not_hold_up_the_others(learner: Learner, lab: Lab, number: str) -> None:
    section = "cdn" if number == "07" else "apigateway"
    edge = INSTALLERS[number][2]
    if number == "08":
        lab.cloud.apigateway.bind_domain(lab.group_id, "two.example.test")
    good = (
        ["www.example.test", "static.example.test"]
        if number == "07"
        else ["api.example.test", "two.example.test"]
    )
    leaf = put_certificate(learner, "*.example.test")
    learner.settings(**{section: {"domains": f"{good[0]}, stranger.example.test, {good[1]}"}})
    run = learner.run(number, code=1)
    error = run.err[run.err.index("error:") :]
    assert "stranger.example.test: " in error
    assert not any(f"{domain}: " in error for domain in good)
    assert run.out.splitlines() == [f"{domain} {learner.serial()}" for domain in good]
    for domain in good:
        assert served(getattr(lab, edge), domain, root_of(learner)) == leaf


def test_07_installs_on_a_wildcard_domain(learner: Learner, lab: Lab) -> None:
    leaf = put_certificate(learner, "*.wild.example.test")
    learner.settings(cdn={"domains": ".wild.example.test"})
    run = learner.run("07")
    assert run.out == f".wild.example.test {learner.serial()}\n"
    assert served(lab.cdn_edge, "anything.wild.example.test", root_of(learner)) == leaf


def test_07_does_not_take_a_wildcard_of_the_parent_for_a_wildcard_domain(
    learner: Learner, calls: Callable[..., list[Call]]
) -> None:
    put_certificate(learner, "*.example.test", "wild.example.test")
    learner.settings(cdn={"domains": ".wild.example.test"})
    assert "does not cover .wild.example.test" in learner.run("07", code=2).err
    assert calls() == []


@each_installer
def test_a_key_that_may_not_install_is_told_which_action_it_lacks(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], number: str
) -> None:
    action, domain, *_ = INSTALLERS[number]
    put_certificate(learner, domain)
    use_key(learner, lab.cloud.ram.add_access_key(actions={"cdn:Describe*", "apigateway:Describe*"}))
    run = learner.run(number, code=1)
    error = run.err[run.err.index("error:") :]
    assert f"{domain}: Forbidden.RAM on {action}" in error
    assert "RAM policy" in error
    assert len(calls(action)) == 1


@each_installer
def test_a_busy_service_is_asked_again(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], number: str
) -> None:
    action, domain, *_ = INSTALLERS[number]
    put_certificate(learner, domain)
    lab.cloud.fail_next(action, ApiError("ServiceBusy", "The specified Domain is configuring.", 403))
    lab.cloud.lose_next_answer(action)
    learner.run(number)
    assert calls(action)[0].code == "ServiceBusy"


def test_07_reads_back_until_the_cdn_has_finished_configuring(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.cloud.cdn, "configuring_seconds", 1.0)
    put_certificate(learner, "www.example.test")
    learner.run("07")
    # Before, just after, and at least once more.
    assert len(calls("DescribeDomainCertificateInfo")) >= 3


@each_installer
def test_a_refused_signature_does_not_echo_what_is_secret(learner: Learner, lab: Lab, number: str) -> None:
    action, domain, _, key_parameter = INSTALLERS[number]
    put_certificate(learner, domain)
    key_pem = (learner.state / "certificate.key").read_text()
    echo = f"POST&%2F&{quote(f'Action={action}&{key_parameter}={quote(key_pem)}', safe='')}"
    lab.cloud.fail_next(
        action,
        ApiError(
            "SignatureDoesNotMatch",
            f"Specified signature is not matched with our calculation. server string to sign is:{echo} "
            f"which was made from {key_pem} and {lab.access_key.access_key_secret}",
        ),
    )
    run = learner.run(number, code=1)
    assert "SignatureDoesNotMatch" in run.err
    assert lab.access_key.access_key_secret not in run.all
    written = run.all + (learner.state / "trace.jsonl").read_text()
    for line in key_pem.splitlines()[1:-1]:
        assert line not in written
        assert quote(line, safe="") not in written
        assert quote(quote(line, safe=""), safe="") not in written


@pytest.mark.parametrize(
    ("number", "section", "key"),
    [("07", "cdn", "domains"), ("08", "apigateway", "group_id"), ("08", "apigateway", "domains")],
)
def test_a_missing_setting_is_named(learner: Learner, number: str, section: str, key: str) -> None:
    put_certificate(learner, INSTALLERS[number][1])
    learner.settings(**{section: {key: None}})
    assert f"{learner.ini}: [{section}] {key} is missing" in learner.run(number, code=2).err


def test_08_names_a_group_that_is_not_there(learner: Learner) -> None:
    put_certificate(learner, "api.example.test")
    learner.settings(apigateway={"group_id": "0123456789abcdef0123456789abcdef"})
    run = learner.run("08", code=1)
    assert "NotFoundApiGroup on DescribeDomain" in run.err
    assert "group_id" in run.err[run.err.index("what to do:") :]


# Credentials


@pytest.mark.parametrize("number", ["05", "07", "08"])
def test_sts_credentials_work(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]], number: str
) -> None:
    learner = orderer("www.example.test")
    put_certificate(learner, *(domain for _, domain, *_ in INSTALLERS.values()))
    key = lab.cloud.ram.add_sts_token()
    use_key(learner, key)
    learner.run(number)
    assert calls() and {call.access_key_id for call in calls()} == {key.access_key_id}
    assert key.security_token
    for call in calls():
        assert key.security_token not in call.query and "SecurityToken" not in call.query


@pytest.mark.parametrize("number", ["05", "07", "08"])
@pytest.mark.parametrize("temporary", [False, True])
def test_aliyun_variables_in_the_environment_change_nothing(
    orderer: Callable[..., Learner], lab: Lab, calls: Callable[..., list[Call]], number: str, temporary: bool
) -> None:
    learner = orderer("www.example.test")
    put_certificate(learner, *(domain for _, domain, *_ in INSTALLERS.values()))
    key = lab.cloud.ram.add_sts_token() if temporary else lab.cloud.ram.add_access_key()
    use_key(learner, key)
    learner.run(
        number,
        ALIYUN_ACCESS_KEY_ID="LTAIwrong",
        ALIYUN_ACCESS_KEY_SECRET="wrong",
        ALIYUN_SECURITY_TOKEN="wrong",
        ALIYUN_REGION_ID="cn-nowhere",
        DEBUG="sdk",
    )
    assert {call.access_key_id for call in calls()} == {key.access_key_id}


def write_profile(learner: Learner, key: Any, name: str = "lab") -> None:
    lines = [f"[{name}]"]
    lines += ["type = access_key"]
    lines += [f"access_key_id = {key.access_key_id}", f"access_key_secret = {key.access_key_secret}"]
    (learner.folder / "credentials.ini").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("environment", [False, True])
def test_a_profile_of_a_credentials_file_wins_over_the_environment(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], environment: bool
) -> None:
    put_certificate(learner, "api.example.test")
    key = lab.cloud.ram.add_access_key()
    write_profile(learner, key)
    learner.settings(alibaba={"profile": "lab", "credentials_file": "credentials.ini"})
    learner.environment = lab.environment() if environment else {}
    learner.run("08")
    assert {call.access_key_id for call in calls()} == {key.access_key_id}


def test_a_profile_that_is_not_there_is_named(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]]
) -> None:
    put_certificate(learner, "api.example.test")
    write_profile(learner, lab.cloud.ram.add_access_key(), name="another")
    learner.settings(alibaba={"profile": "lab", "credentials_file": "credentials.ini"})
    run = learner.run("08", code=2)
    assert "no usable profile lab" in run.err
    assert str(learner.folder / "credentials.ini") in run.err
    assert calls() == []


def test_without_any_credentials_the_variables_to_set_are_named(
    learner: Learner, calls: Callable[..., list[Call]]
) -> None:
    put_certificate(learner, "api.example.test")
    learner.environment = {}
    run = learner.run("08", code=2, HOME=str(learner.folder), USERPROFILE=str(learner.folder))
    assert "ALIBABA_CLOUD_ACCESS_KEY_ID" in run.err
    assert calls() == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("id", "InvalidAccessKeyId.NotFound"),
        ("secret", "SignatureDoesNotMatch"),
        ("token", "InvalidSecurityToken"),
        ("expired", "InvalidSecurityToken.Expired"),
    ],
)
def test_wrong_credentials_are_told_with_the_service_s_code(
    learner: Learner, lab: Lab, calls: Callable[..., list[Call]], wrong: str, code: str
) -> None:
    put_certificate(learner, "api.example.test")
    key = lab.cloud.ram.add_sts_token(lifetime=0 if wrong == "expired" else 3600)
    use_key(learner, key)
    name = {"id": "ACCESS_KEY_ID", "secret": "ACCESS_KEY_SECRET", "token": "SECURITY_TOKEN"}.get(wrong)
    if name:
        learner.environment[f"ALIBABA_CLOUD_{name}"] += "x"
    run = learner.run("08", code=1)
    error = run.err[run.err.index("error:") :]
    assert code in error
    assert "what to do:" in error
    assert len(calls()) == 1
    for secret in list(learner.environment.values())[1:]:
        assert secret not in run.all
