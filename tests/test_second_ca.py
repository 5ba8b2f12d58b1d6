"""The scripts with a CA that is not Pebble: acme2certifier, which other people wrote from the same RFCs."""

import json
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import Learner, account_of, dns_contents, key_of
from cryptography.hazmat.primitives import serialization
from second_ca import SecondCA
from visitor import Visitor

from common import acme, config, jws
from common import x509 as our_x509
from lab import Lab
from lab.alibaba import Cloud
from lab.nameserver import NameServer

SERIES = ("01", "02", "03", "04", "05", "06", "07", "08", "10", "09")
NOWHERE = {"cdn": {"domains": None}, "apigateway": {"domains": None}, "iis": {"password_file": None}}
PROFILES = {"classic": "as long as ever", "short": "gone in a week"}
KEY_ID = "customer-1"
HMAC_KEY = jws.b64url(secrets.token_bytes(32))


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def ca(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondCA]:
    """A CA that asks nothing of its customers."""
    with SecondCA(tmp_path_factory.mktemp("ca"), lab.nameservers[1]) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def strict_ca(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondCA]:
    """A CA that wants to know its customers: external account binding, a contact; and it has profiles."""
    options: dict[str, Any] = {
        "eab_keys": {KEY_ID: HMAC_KEY},
        "contact_required": True,
        "profiles": PROFILES,
        "renewal_info": False,
    }
    with SecondCA(tmp_path_factory.mktemp("ca"), lab.nameservers[1], **options) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def customer(lab: Lab, tmp_path: Path) -> Callable[..., Learner]:
    """Make customers of a CA; without further sections, nothing is installed anywhere."""

    def make(
        ca: SecondCA, name: str = "customer", acme: dict[str, Any] | None = None, **more: Any
    ) -> Learner:
        sections = {"certificate": {"key_type": "ec256"}, **(more or NOWHERE)}
        return Learner(tmp_path / name, lab, acme=ca.settings(**acme or {}), **sections)

    return make


def root_pem(ca: SecondCA) -> str:
    return ca.root.public_bytes(serialization.Encoding.PEM).decode()


def served(address: str, name: str) -> str:
    """The serial that a server hands out for a name."""
    host, _, port = address.rpartition(":")
    return our_x509.serial_hex(our_x509.served_certificate(name, (host, int(port))))


def test_the_series_from_the_first_key_to_revocation(
    ca: SecondCA, customer: Callable[..., Learner], lab: Lab
):
    learner = customer(ca, apigateway={"domains": "api.example.test"})
    # An apex and its wildcard, a zone below another, and a name whose validation was handed over by a CNAME.
    learner.settings(
        ["example.test", "*.example.test", "www.dev.example.test", "www.partner.test"], acme=ca.settings()
    )
    before = dns_contents(lab)
    with Visitor(root_pem(ca), []) as visitor:
        for number in SERIES:
            learner.run(number)
            if number == "08":
                visitor.targets = [
                    (lab.cdn_edge, "www.example.test"),
                    (lab.apigateway_edge, "api.example.test"),
                ]
    assert visitor.failures == [] and visitor.handshakes > 0
    leaf, issuer, root = learner.chain()
    leaf.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    assert root == ca.root
    assert our_x509.dns_names(leaf) == [
        "example.test",
        "*.example.test",
        "www.dev.example.test",
        "www.partner.test",
    ]
    assert dns_contents(lab) == before
    assert leaf.serial_number in ca.revoked()
    # A second time finds the account, keeps the certificate, and hears that it is revoked.
    assert learner.run("03").out == learner.run("03", "--find").out
    learner.run("06")
    assert "it was already" in learner.run("09").err


def test_every_request_is_as_the_rfc_wants_it(ca: SecondCA, customer: Callable[..., Learner]):
    customer(ca).series("01", "02", "03", "04", "05", "06", "12", "11", "09")
    journal = ca.journal()
    posts = [entry for entry in journal if entry["method"] == "POST"]
    assert {e["path"].split("/")[2] for e in posts} >= {
        "newaccount", "acct", "neworders", "authz", "chall", "order", "cert", "key-change", "revokecert",
    }  # fmt: skip
    for entry in journal:
        assert entry["user_agent"].startswith("acme-alibaba/")
        # Plain GETs are for what is public (RFC 8555 section 6.3, RFC 9773 section 4.1).
        public = entry["path"] == "/directory" or entry["path"].startswith("/acme/renewal-info/")
        assert entry["method"] == (
            "GET" if public else "HEAD" if entry["path"] == "/acme/newnonce" else "POST"
        )
    for entry in posts:
        assert entry["content_type"] == "application/jose+json"
        protected = entry["protected"]
        assert set(protected) == {
            "alg",
            "nonce",
            "url",
            "kid" if entry["path"] != "/acme/newaccount" else "jwk",
        }
        assert protected["url"].endswith(entry["path"])
    nonces = [entry["protected"]["nonce"] for entry in posts]
    assert len(set(nonces)) == len(nonces)


def test_a_certificate_is_revoked_with_a_reason_and_a_refusal_is_told(
    ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(ca)
    learner.series("01", "02", "03", "04", "05", "06")
    serial = learner.chain()[0].serial_number
    # This CA takes no revocation by the certificate's own key (RFC 8555 section 7.6 would have it so).
    refused = learner.run("09", "--with-certificate-key", code=1)
    assert "accountDoesNotExist" in refused.err
    assert serial not in ca.revoked()
    assert not (learner.state / "revoked.json").exists()
    run = learner.run("09", "--reason", "superseded")
    assert serial in ca.revoked()
    assert run.out == f"{learner.serial()}\n"
    with_key, with_account = (e for e in ca.journal()[-6:] if e["path"] == "/acme/revokecert")
    assert "jwk" in with_key["protected"] and "reason" not in with_key["payload"]
    assert "kid" in with_account["protected"] and with_account["payload"]["reason"] == 4


def test_a_name_that_the_ca_refuses_is_told_at_once_and_ordered_anew(
    customer: Callable[..., Learner], lab: Lab, tmp_path: Path
):
    before = dns_contents(lab)
    with NameServer(Cloud().dns) as empty, SecondCA(tmp_path / "ca", empty.address) as blind:
        learner = customer(blind)
        learner.series("01", "02", "03", "04")
        # This CA looks before it answers the challenge, and leaves the order "pending".
        run = learner.run("05", code=1)
        paths = [entry["path"].split("/")[2] for entry in blind.journal()[-5:]]
        assert "chall" in paths and "order" not in paths, "it waited for an order that will never be ready"
        assert "error: the order is invalid" in run.err
        assert "then run 04_new_order.py and this again" in run.err
        assert dns_contents(lab) == before
        learner.run("04")
        assert len(blind.orders()) == 2
    assert "Traceback" not in blind.log.read_text()


# The order that is "processing", which Pebble leaves at once.


@pytest.mark.parametrize("killed", [False, True])
def test_an_order_that_is_processing_is_waited_for_as_the_ca_says(
    killed: bool, customer: Callable[..., Learner], lab: Lab, tmp_path: Path
):
    with SecondCA(tmp_path / "ca", lab.nameservers[1], issue_delay=2, order_retry_after=1) as slow:
        learner = customer(slow)
        learner.series("01", "02", "03", "04", "05")
        if killed:
            process = learner.start("06")
            wait_for(lambda: any(e["path"].endswith("/finalize") for e in slow.journal()))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not (learner.state / "certificate.pem").exists()
        polls = len(slow.journal())
        learner.run("06")
        asked = [entry for entry in slow.journal()[polls:] if "Retry-After" in entry["headers"]]
        assert {entry["headers"]["Retry-After"] for entry in asked} == {"1"}
        assert 1 <= len(asked) <= 4
        assert len([e for e in slow.journal() if e["path"].endswith("/finalize")]) == 1
        assert len(slow.orders()) == 1
        assert our_x509.public_key_der(learner.chain()[0]) == our_x509.public_key_der(
            our_x509.load_private_key((learner.state / "certificate.key").read_bytes(), learner.state)
        )
    assert "Traceback" not in slow.log.read_text()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# Renewal information (RFC 9773).


def questions(ca: SecondCA) -> list[dict[str, Any]]:
    return [entry for entry in ca.journal() if entry["path"].startswith("/acme/renewal-info/")]


@pytest.mark.parametrize(
    ("retry_after", "clamped"),
    [(5, timedelta(minutes=1)), (21600, timedelta(hours=6)), (864000, timedelta(days=1))],
)
def test_the_cas_advice_is_drawn_from_once_and_asked_for_no_sooner_than_it_says(
    retry_after: int, clamped: timedelta, customer: Callable[..., Learner], lab: Lab, tmp_path: Path
):
    options: dict[str, Any] = {"renew_from": 60, "window": 5 * 86400, "ask_again": retry_after}
    with SecondCA(tmp_path / "ca", lab.nameservers[1], **options) as ca:
        learner = customer(ca)
        learner.series("01", "03", "11")
        before = utc_now()
        run = learner.run("11")
        record = learner.json("renewal.json")
        leaf = learner.chain()[0]
        assert [q["path"].rpartition("/")[2] for q in questions(ca)] == [our_x509.certificate_id(leaf)]
        # 60 % of ninety days, in whole seconds.
        start, end = (datetime.fromisoformat(edge) for edge in record["window"])
        assert start == leaf.not_valid_before_utc + timedelta(days=54)
        assert end == start + timedelta(days=5)
        moment = datetime.fromisoformat(record["renew_at"])
        assert start <= moment < end
        assert f"nothing to do: due on {moment:%Y-%m-%d %H:%M} UTC by the CA's suggestion" in run.err
        pause = datetime.fromisoformat(record["ask_again_at"]) - before
        assert clamped <= pause < clamped + timedelta(seconds=30)

        learner.run("11")
        assert len(questions(ca)) == 1
        record["ask_again_at"] = (utc_now() - timedelta(seconds=1)).isoformat()
        (learner.state / "renewal.json").write_text(json.dumps(record))
        learner.run("11")
        assert len(questions(ca)) == 2
        assert learner.json("renewal.json")["renew_at"] == record["renew_at"]
        assert len(ca.orders()) == 1


def test_a_short_lived_certificate_is_replaced_three_times_within_the_cas_window_and_no_handshake_fails(
    customer: Callable[..., Learner], lab: Lab, tmp_path: Path
):
    # From its second second to its fourth: by its lifetime it would be due after thirty.
    options: dict[str, Any] = {"lifetime": 60, "renew_from": 3.5, "window": 2}
    with SecondCA(tmp_path / "ca", lab.nameservers[1], **options) as ca:
        learner = customer(ca, apigateway={"domains": "api.example.test"})
        learner.series("01", "03")
        before = dns_contents(lab)
        learner.run("11")
        leaves = [learner.chain()[0]]
        targets = [(lab.cdn_edge, "www.example.test"), (lab.apigateway_edge, "api.example.test")]
        end = time.monotonic() + 100
        with Visitor(root_pem(ca), targets) as visitor:
            while len(leaves) < 4:
                assert time.monotonic() < end
                learner.run("11")
                leaf = learner.chain()[0]
                if leaf == leaves[-1]:
                    moment = datetime.fromisoformat(learner.json("renewal.json")["renew_at"])
                    issued = leaf.not_valid_before_utc
                    assert issued + timedelta(seconds=2) <= moment < issued + timedelta(seconds=4)
                else:
                    assert utc_now() - leaves[-1].not_valid_before_utc >= timedelta(seconds=2)
                    leaves.append(leaf)
                    for address, name in targets:
                        assert served(address, name) == learner.serial()
        assert visitor.failures == []
        assert visitor.handshakes > 20
        replaced = [order.get("replaces") for order in ca.orders()]
        assert replaced == [None, *(our_x509.certificate_id(leaf) for leaf in leaves[:-1])]
        keys = {our_x509.public_key_der(leaf) for leaf in leaves}
        assert len(keys) == 4
        assert dns_contents(lab) == before
    assert "Traceback" not in ca.log.read_text()


def test_an_order_for_other_names_replaces_nothing(ca: SecondCA, customer: Callable[..., Learner]):
    learner = customer(ca)
    learner.series("01", "02", "03", "04", "05", "06")
    first = our_x509.certificate_id(learner.chain()[0])
    learner.settings(domains=["www.dev.example.test"], acme=ca.settings(), **NOWHERE)
    learner.series("02", "04")
    assert "replaces" not in ca.orders()[-1]
    learner.settings(domains=["example.test", "www.dev.example.test"], acme=ca.settings(), **NOWHERE)
    learner.series("02", "04")
    assert ca.orders()[-1]["replaces"] == first


def test_two_cas_are_asked_for_the_same_names_at_the_same_time(
    ca: SecondCA, customer: Callable[..., Learner], lab: Lab, tmp_path: Path
):
    at_second = customer(ca)
    at_pebble = Learner(tmp_path / "pebble", lab, certificate={"key_type": "ec256"}, **NOWHERE)
    before = dns_contents(lab)
    for learner in (at_second, at_pebble):
        learner.series("01", "02", "03", "04")
    processes = [learner.start("05") for learner in (at_second, at_pebble)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert dns_contents(lab) == before
    for learner, issuer in ((at_second, "Second CA issuer"), (at_pebble, "Pebble")):
        learner.run("06")
        assert our_x509.issuer_name(learner.chain()[0]).startswith(issuer)
    # One run for both; the first to fail stops nobody, and neither takes the other's account.
    at_second.settings(acme={**ca.settings(), "directory": lab.directory_url}, **NOWHERE)
    run = at_second.run("11", "--force", str(at_second.ini), str(at_pebble.ini), code=2)
    assert f"belongs to {ca.directory_url}" in run.err
    assert run.out == f"{at_pebble.state / 'fullchain.pem'}\n"


# What a CA wants to know of its customers.


def bound(learner: Learner, key: str = HMAC_KEY) -> dict[str, Any]:
    """The settings of a customer whose HMAC key is in a file."""
    (learner.folder / "eab.key").write_text(key + "\n")
    return {"eab_key_id": KEY_ID, "eab_hmac_key_file": "eab.key", "contact": "mailto:admin@example.test"}


def test_an_account_is_bound_to_the_customer_and_a_wrong_binding_is_refused_in_words(
    strict_ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(strict_ca, acme={"contact": "mailto:admin@example.test"})
    learner.run("01")
    refused = learner.run("03", code=1)
    assert "externalAccountRequired" in refused.err and "set [acme] eab_key_id" in refused.err
    wrong = jws.b64url(secrets.token_bytes(32))
    learner.settings(acme=strict_ca.settings(**bound(learner, wrong)), **NOWHERE)
    assert "unauthorized" in learner.run("03", code=1).err
    assert not (learner.state / "account.json").exists()
    learner.settings(acme=strict_ca.settings(**bound(learner)), **NOWHERE)
    run = learner.run("03")
    assert HMAC_KEY not in run.all + (learner.state / "trace.jsonl").read_text()
    binding = [e for e in strict_ca.journal() if e["path"] == "/acme/newaccount"][-1]["payload"][
        "externalAccountBinding"
    ]
    assert set(binding) == {"protected", "payload", "signature"}
    # The second time it is the account that is known; and its key may change.
    assert learner.run("03").out == run.out
    learner.run("12")
    assert learner.run("03").out == run.out


def test_a_ca_that_wants_a_contact_gets_it_and_hears_when_it_changes(
    strict_ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(strict_ca)
    learner.run("01")
    settings = bound(learner)
    learner.settings(acme=strict_ca.settings(**{**settings, "contact": None}), **NOWHERE)
    assert "Contact information is missing" in learner.run("03", code=1).err
    learner.settings(acme=strict_ca.settings(**settings), **NOWHERE)
    assert '"mailto:admin@example.test"' in learner.run("03").err
    settings["contact"] = "mailto:other@example.test, mailto:third@example.test"
    learner.settings(acme=strict_ca.settings(**settings), **NOWHERE)
    learner.run("03")
    assert '["mailto:other@example.test", "mailto:third@example.test"]' in learner.run("03", "--info").err


def test_a_profile_that_is_offered_is_ordered_and_another_is_refused_with_the_list(
    strict_ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(strict_ca)
    settings = bound(learner)
    for profile in ("short", "shorter"):
        learner.settings(acme=strict_ca.settings(**settings, profile=profile), **NOWHERE)
        if profile == "short":
            learner.series("01", "02", "03")
            run = learner.run("04")
            assert "classic: as long as ever" in run.err and "short: gone in a week" in run.err
            assert strict_ca.orders()[-1]["profile"] == "short"
            made = len(strict_ca.orders())
        else:
            shutil.rmtree(learner.state / "pending")
            learner.run("02")
            refused = learner.run("04", code=2)
            assert "[acme] profile: this CA has no profile shorter; it offers classic, short" in refused.err
    assert len(strict_ca.orders()) == made
    learner.settings(acme=strict_ca.settings(**settings), **NOWHERE)
    learner.series("04", "05", "06")
    assert "profile" not in strict_ca.orders()[-1]


def test_a_ca_without_profiles_or_advice_says_so(
    ca: SecondCA, strict_ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(ca)
    learner.series("01", "02", "03")
    learner.settings(acme=ca.settings(profile="short"), **NOWHERE)
    assert "this CA has no profile short; it offers no profiles" in learner.run("04", code=2).err
    other = customer(strict_ca, "other")
    other.settings(acme=strict_ca.settings(**bound(other)), **NOWHERE)
    other.series("01", "03", "11")
    run = other.run("11")
    assert "this CA gives none" in run.err
    assert "nothing to do: due on" in run.err and "by its lifetime" in run.err


# The account's life.


@pytest.mark.parametrize("broke_off", [None, "before the POST", "after the POST"])
def test_the_account_has_its_new_key_even_when_the_change_broke_off(
    broke_off: str | None, ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(ca)
    learner.series("01", "03")
    account, path = learner.json("account.json")["account_url"], learner.state / "account.key"
    old_pem, pending = path.read_bytes(), learner.state / "pending" / "account.key"
    if broke_off == "before the POST":
        pending.parent.mkdir()
        new = our_x509.new_private_key("ec256")
        pending.write_bytes(our_x509.private_key_pem(new))
    else:
        learner.run("12")
    if broke_off == "after the POST":
        # As if the power had gone when the CA knew of the key, and this folder not yet.
        pending.write_bytes(path.read_bytes())
        path.unlink()
        path.write_bytes(old_pem)
    if broke_off:
        learner.run("12")
    new, old = key_of(path), our_x509.load_private_key(old_pem, path)
    assert jws.thumbprint(new) != jws.thumbprint(old)
    assert (account_of(learner, new), account_of(learner, old)) == (account, None)
    kept = key_of(learner.state / "history" / f"account-{jws.thumbprint(old)}.key")
    assert jws.thumbprint(kept) == jws.thumbprint(old)
    changes = [
        entry for entry in ca.journal() if entry["path"] == "/acme/key-change" and entry["status"] == 200
    ]
    assert len([entry for entry in changes if entry["protected"]["kid"] == account]) == 1
    learner.series("02", "04")


def test_a_deactivated_account_is_refused_by_the_ca_and_by_every_script(
    ca: SecondCA, customer: Callable[..., Learner]
):
    learner = customer(ca)
    learner.series("01", "02", "03", "04")
    account = learner.json("account.json")["account_url"]
    learner.run("13", "--yes")
    for number in ("03", "04", "05", "12"):
        assert "is deactivated, for good" in learner.run(number, code=2).err
    client = acme.connect(config.load(learner.ini), key_of(learner.state / "account.key"), account)
    with pytest.raises(acme.Problem, match="accountDoesNotExist"):
        client.post_as_get(account)
