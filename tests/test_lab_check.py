"""`python3 lab check`: what it says of each step that is done, not yet done, or done wrongly."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import ROOT, Learner, clean_environment, dns_contents, load_script, open_account
from cryptography.hazmat.primitives import serialization

from common import acme, alibaba, config, jws
from common import x509 as our_x509
from lab import Lab, LabError
from lab.__main__ import parser
from lab.check import Ca, Work, run, steps

EVERY_STEP = [f"{number:02}" for number in range(1, 14)]

posix = pytest.mark.skipif(os.name == "nt", reason="modes of files and signals are POSIX's")


def look(learner: Learner) -> dict[str, steps.Step]:
    found = steps.look_at(Work(learner.ini, Ca(learner.lab.directory)))
    for step in found:
        assert bool(step.hint) == (step.state == "wrong"), step
        # A hint leads to where one finds out; it does not say what to type.
        assert ".py" not in step.hint, step
    return {step.name: step for step in found}


def states(learner: Learner) -> dict[str, str]:
    return {name: step.state for name, step in look(learner).items()}


def wrong(learner: Learner, number: str) -> str:
    """What is said of a step, which must be done wrongly."""
    step = look(learner)[number]
    assert step.state == "wrong", step
    return step.text


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def new_key() -> bytes:
    return our_x509.private_key_pem(our_x509.new_private_key("ec256"))


def replace(path: Path, content: bytes) -> None:
    """Put another file in place of what a link leads to, or of a file; private, as the scripts leave it."""
    path.unlink()
    path.touch(mode=0o600)
    path.write_bytes(content)


@contextlib.contextmanager
def published(learner: Learner, rr: str, value: str) -> Iterator[None]:
    """A TXT record in example.test for a while."""
    script = load_script("05")
    with mock.patch.dict(os.environ, learner.environment):
        cloud = alibaba.connect(config.load(learner.ini), "alidns")
        record_id = script.add_txt_record(cloud, "example.test", rr, value)
        try:
            yield
        finally:
            script.delete_txt_record(cloud, record_id)


def ca_of(learner: Learner) -> tuple[acme.Client, dict[str, Any]]:
    """A client of the learner's account, and the order in order.json."""
    ca = acme.account_client(config.load(learner.ini))
    return ca, ca.post_as_get(learner.json("pending/order.json")["order_url"]).object()


def folder_of_up(learner: Learner) -> Path:
    """What "lab up" leaves beside a learner's state: lab.ini, and .lab with the lab's own files."""
    shutil.copy(learner.ini, learner.folder / "lab.ini")
    (learner.folder / ".lab").symlink_to(learner.lab.directory)
    return learner.folder


def check(folder: Path, *arguments: str) -> int:
    return run(parser().parse_args(["check", "--directory", str(folder), *arguments]))


# The steps as they should go.


def test_each_script_makes_its_step_done_and_no_other(new_lab: Callable[..., Lab], tmp_path: Path):
    learner = Learner(
        tmp_path / "learner", new_lab(chain_length=2), domains=("example.test", "*.example.test")
    )
    learner.settings(certificate={"key_type": "ec256"}, account={"key_type": "rsa2048"})
    done: set[str] = set()
    assert states(learner) == dict.fromkeys(EVERY_STEP, "not yet")
    for number in EVERY_STEP:
        learner.run(number, *(["--yes"] if number == "13" else []))
        done.add(number)
        found = states(learner)
        assert {name for name, state in found.items() if state == "done"} == done, found
        assert "wrong" not in found.values()


def test_looking_changes_nothing_and_goes_past_the_door_in_front_of_the_ca(holder: Learner, lab: Lab):
    before = files(holder.folder), dns_contents(lab), len(lab.cloud.calls), len(lab.ca.exchanges)
    look(holder)
    assert (files(holder.folder), dns_contents(lab), len(lab.cloud.calls), len(lab.ca.exchanges)) == before


def test_a_fault_at_the_ca_is_no_fault_of_the_learners(holder: Learner, lab: Lab):
    lab.faults.on("ca-503")
    try:
        assert states(holder)["03"] == "done"
    finally:
        lab.faults.off()


# 01 to 03: keys, request, account.


@posix
@pytest.mark.parametrize(
    ("number", "name"), [("01", "account.key"), ("06", "certificate.key"), ("10", "certificate.pfx")]
)
def test_a_private_key_that_others_can_read(holder: Learner, number: str, name: str):
    if number == "10":
        holder.run("10")
    # Others have certificates by this account, too, and a newer one would make 06 wrong.
    before = states(holder)
    (holder.state / name).chmod(0o644)
    assert "mode 0644" in wrong(holder, number)
    # The other steps are not to blame for it.
    assert {step for step, state in states(holder).items() if state != before[step]} <= {number}


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff\x00"])
def test_an_account_key_that_is_none(learner: Learner, content: bytes):
    open_account(learner)
    replace(learner.state / "account.key", content)
    assert "account.key is no private key" in wrong(learner, "01")


def request_for(learner: Learner, *domains: str, key: bytes) -> None:
    """What 02 does, for these names and with this key."""
    loaded = serialization.load_pem_private_key(key, password=None)
    pending = learner.state / "pending"
    pending.mkdir(mode=0o700, exist_ok=True)
    (pending / "certificate.key").touch(mode=0o600)
    (pending / "certificate.key").write_bytes(key)
    (pending / "certificate.csr").write_bytes(load_script("02").create_csr(loaded, list(domains)))


def test_requests_that_06_would_be_refused_with(learner: Learner):
    open_account(learner)
    both = ("example.test", "*.example.test")

    request_for(learner, *both, key=new_key())
    assert states(learner)["02"] == "done"

    request_for(learner, "example.test", key=new_key())
    assert wrong(learner, "02") == "the CSR lacks *.example.test"

    request_for(learner, *both, "www.dev.example.test", key=new_key())
    assert "has www.dev.example.test, which the settings do not" in wrong(learner, "02")

    request_for(learner, *both, key=(learner.state / "account.key").read_bytes())
    assert wrong(learner, "02") == "the certificate's key is the account's key"

    request_for(learner, *both, key=new_key())
    replace(learner.state / "pending" / "certificate.key", new_key())
    assert "not made with the key beside it" in wrong(learner, "02")

    replace(learner.state / "pending" / "certificate.csr", b"nonsense")
    assert "no PEM request" in wrong(learner, "02")


def test_an_internationalised_name_is_the_same_name_in_the_request(learner: Learner):
    learner.settings(domains=("bücher.example.test",))
    open_account(learner)
    request_for(learner, "bücher.example.test", key=new_key())
    assert states(learner)["02"] == "done"


def test_an_account_that_is_another_keys_or_anothers_url(learner: Learner):
    open_account(learner)
    account = learner.json("account.json")

    url = f"{account['account_url']}0"
    (learner.state / "account.json").write_text(json.dumps({**account, "account_url": url}))
    assert f"account.json names {url.rpartition('/')[2]}" in wrong(learner, "03")

    (learner.state / "account.json").write_text("[]")
    assert "no JSON object" in wrong(learner, "03")

    (learner.state / "account.json").write_text(json.dumps(account))
    replace(learner.state / "account.key", new_key())
    assert "the CA has none for account.key" in wrong(learner, "03")


# 04 and 05: order and proof.


def test_an_order_for_other_names_an_unknown_one_and_a_lost_one(orderer: Callable[..., Learner]):
    learner = orderer("example.test")
    learner.settings(domains=("example.test", "*.example.test"))
    assert "the order is for example.test" in wrong(learner, "04")

    learner.settings(domains=("example.test",))
    order = learner.json("pending/order.json")
    unknown = {**order, "order_url": f"{order['order_url']}0"}
    (learner.state / "pending" / "order.json").write_text(json.dumps(unknown))
    assert "does not know the order" in wrong(learner, "04")

    (learner.state / "pending" / "order.json").unlink()
    assert look(learner)["04"].text == "the CA has an order that is pending, but order.json is not there"


def test_an_order_that_has_failed_says_why(orderer: Callable[..., Learner]):
    learner = orderer("example.test")
    ca, order = ca_of(learner)
    script = load_script("05")
    for challenge in script.pending_challenges(ca, order["authorizations"]):
        script.respond(ca, challenge)
    ca.poll(
        learner.json("pending/order.json")["order_url"], lambda o: o["status"] == "invalid", "order to fail"
    )

    text = wrong(learner, "04")
    assert text.startswith("the order is invalid: example.test: ")
    assert states(learner)["05"] == "not yet"


def test_a_txt_value_over_the_wrong_text_is_told_from_the_right_one(orderer: Callable[..., Learner]):
    learner = orderer("wrong-value.example.test")
    ca, order = ca_of(learner)
    (challenge,) = load_script("05").pending_challenges(ca, order["authorizations"])
    assert look(learner)["05"].text == "0 of 1 TXT values are in the DNS"

    with published(learner, "_acme-challenge.wrong-value", jws.thumbprint(ca.key)):
        assert "_acme-challenge.wrong-value.example.test is the thumbprint alone" in wait_for_wrong(learner)

    with published(learner, "_acme-challenge.wrong-value", challenge.value):
        seen = wait_for(learner, "05", lambda step: "1 TXT values are in the DNS" in step.text)
        assert seen.state == "not yet"


def wait_for(learner: Learner, number: str, good: Callable[[steps.Step], bool]) -> steps.Step:
    """Look until a step is as expected: the second name server of the tests' lab is late."""
    deadline = time.monotonic() + 20
    while not good(step := look(learner)[number]):
        assert time.monotonic() < deadline, step
        time.sleep(0.05)
    return step


def wait_for_wrong(learner: Learner) -> str:
    return wait_for(learner, "05", lambda step: step.state == "wrong").text


def test_every_mistake_with_a_txt_value_that_people_make(orderer: Callable[..., Learner]):
    learner = orderer("mistakes.example.test")
    ca, order = ca_of(learner)
    authorization = ca.post_as_get(order["authorizations"][0]).object()
    token = next(c["token"] for c in authorization["challenges"] if c["type"] == "dns-01")
    thumbprint = jws.thumbprint(ca.key)
    both = f"{token}.{thumbprint}"

    def sha256(text: str) -> str:
        return jws.b64url(hashlib.sha256(text.encode()).digest())

    right = sha256(both)
    octets = hashlib.sha256(both.encode()).digest()
    spaced = sha256(json.dumps(jws.jwk(ca.key)))
    mistakes = {
        token: "the token as the CA gave it",
        thumbprint: "the thumbprint alone",
        both: "not its SHA-256",
        sha256(token): "the token alone",
        sha256(thumbprint): "the thumbprint alone",
        sha256(token + thumbprint): "nothing between",
        sha256(f"{thumbprint}.{token}"): "the other order",
        sha256(both + "\n"): "a line end",
        sha256(f"{token}.{spaced}"): "JSON that has spaces",
        sha256(octets.hex()): "a hash of the hash",
        octets.hex(): "hexadecimal",
        jws.b64url(octets.hex().encode()): "hexadecimal text",
        base64.b64encode(octets).decode(): "base64 and not in base64url",
        f"{right}=": "padding",
    }
    for value, words in mistakes.items():
        with mock.patch.object(Work, "txt_values", lambda self, name, v=value: [frozenset({v, "other"})] * 2):
            text = wrong(learner, "05")
        # In base64 without "+" and "/", the two alphabets give the same.
        assert words in text or ("padding" in text and value.endswith("=")), (value, text)
    with mock.patch.object(Work, "txt_values", lambda self, name: [frozenset({right, token})] * 2):
        assert states(learner)["05"] == "not yet"


def test_a_value_that_only_one_name_server_has(orderer: Callable[..., Learner]):
    learner = orderer("half.example.test")
    ca, order = ca_of(learner)
    (challenge,) = load_script("05").pending_challenges(ca, order["authorizations"])
    values = [frozenset({challenge.value}), frozenset[str]()]
    with mock.patch.object(Work, "txt_values", lambda self, name: values):
        assert "on one name server and not yet on the other" in look(learner)["05"].text


def test_records_that_were_left_in_the_zone(orderer: Callable[..., Learner]):
    learner = orderer("left.example.test")
    learner.run("05")
    assert states(learner)["05"] == "done"
    journal = learner.state / "pending" / "dns_records.json"
    journal.write_text(json.dumps({"entries": [{"zone": "example.test", "rr": "x", "value": "v"}]}))
    assert "1 TXT record is still to be taken back" in look(learner)["05"].text
    os.utime(journal, (0, 0))
    assert "1 TXT record is still in the zone, long after the proof" in wrong(learner, "05")


# 06 to 10: the certificate and where it is used.


def test_a_certificate_set_that_does_not_hold_together(holder: Learner):
    chain = holder.chain()
    key = (holder.state / "certificate.key").read_bytes()
    whole = (holder.state / "fullchain.pem").read_bytes()

    replace(holder.state / "certificate.key", new_key())
    assert "not the key of fullchain.pem" in wrong(holder, "06")
    replace(holder.state / "certificate.key", key)

    replace(holder.state / "fullchain.pem", our_x509.certificate_pem(chain[:1]))
    assert "holds no issuer" in wrong(holder, "06")

    replace(holder.state / "fullchain.pem", our_x509.certificate_pem([chain[0], chain[0]]))
    assert "does not lead to the CA's root" in wrong(holder, "06")

    replace(holder.state / "fullchain.pem", b"nonsense")
    assert "no PEM certificate" in wrong(holder, "06")

    replace(holder.state / "fullchain.pem", whole)
    replace(holder.state / "certificate.pem", our_x509.certificate_pem(chain[1:2]))
    assert "are of two certificates" in wrong(holder, "06")

    holder.settings(domains=("example.test", "*.example.test", "shop.workshop.com.test"))
    replace(holder.state / "certificate.pem", our_x509.certificate_pem(chain[:1]))
    assert wrong(holder, "06") == "the certificate lacks shop.workshop.com.test"


def test_an_older_certificate_in_place_of_the_newest_in_files_on_the_edge_and_in_the_pfx(holder: Learner):
    old = holder.serial()
    holder.settings(certificate={"key_type": "ec256"})
    holder.series("07", "08", "10", "02", "04", "05", "06")
    new = holder.serial()

    for number in ("07", "08"):
        assert f"serves serial {old[:8]}…, which {new[:8]}… has replaced" in wrong(holder, number)
    assert f"holds {old[:8]}…, and the current certificate is {new[:8]}…" in wrong(holder, "10")

    (holder.state / "current").unlink()
    (holder.state / "current").symlink_to(f"history/{old}")
    assert f"issued a newer one since, serial {new[:8]}…" in wrong(holder, "06")


def test_a_domain_that_serves_something_else_is_not_yet_served(holder: Learner):
    holder.settings(cdn={"domains": "static.example.test, nowhere.example.test"})
    assert look(holder)["07"].text == "nowhere.example.test, static.example.test do not serve it"
    holder.settings(cdn={"domains": None})
    assert "no domain in [cdn]" in look(holder)["07"].text


def test_a_revocation_that_the_ca_has_not_heard_of(holder: Learner):
    (holder.state / "revoked.json").write_text(
        json.dumps({"serial": holder.serial(), "reason": "superseded"})
    )
    assert "but the CA does not" in wrong(holder, "09")


def test_a_pfx_whose_password_is_another(holder: Learner):
    holder.run("10")
    (holder.folder / "pfx-password.txt").write_text("another one")
    assert "does not open with the password" in wrong(holder, "10")
    replace(holder.state / "certificate.pfx", b"nonsense")
    assert "does not open" in wrong(holder, "10")


# 11 to 13.


def test_a_renewal_that_failed_says_why(holder: Learner):
    record = {"failures": 1, "last_failure": "nowhere.example.test: InvalidDomain.NotFound\nmore"}
    (holder.state / "renewal.json").write_text(json.dumps(record))
    assert wrong(holder, "11") == "its last try failed: nowhere.example.test: InvalidDomain.NotFound"


def test_a_key_change_that_broke_off_and_an_old_key_that_is_put_back(learner: Learner):
    open_account(learner)
    (learner.state / "pending").mkdir(exist_ok=True)
    (learner.state / "pending" / "account.key").write_bytes(new_key())
    assert "two account keys" in wrong(learner, "01")

    learner.run("12")
    assert states(learner)["12"] == "done"
    (old,) = (learner.state / "history").glob("account-*.key")
    replace(learner.state / "account.key", old.read_bytes())
    assert "the CA has no account for account.key" in wrong(learner, "12")
    # Whoever has the current key in history/ has no old one.
    open_account(learner)
    old.write_bytes((learner.state / "account.key").read_bytes())
    assert "still knows the old key" in wrong(learner, "12")


def test_an_account_whose_end_only_one_side_knows(learner: Learner):
    open_account(learner)
    account = learner.json("account.json")
    (learner.state / "account.json").write_text(json.dumps({**account, "status": "deactivated"}))
    assert "still takes the account's requests" in wrong(learner, "13")

    (learner.state / "account.json").write_text(json.dumps(account))
    learner.run("13", "--yes")
    (learner.state / "account.json").write_text(json.dumps(account))
    assert 'account.json says "valid"' in wrong(learner, "13")


@pytest.mark.parametrize(
    "name",
    [
        *("account.key", "account.json", "pending/certificate.key", "pending/certificate.csr"),
        *("pending/order.json", "pending/dns_records.json", "pending/account.key", "certificate.key"),
        *("certificate.pem", "fullchain.pem", "certificate.pfx", "renewal.json", "revoked.json"),
        *("trace.jsonl", "history/account-x.key", "history/0a/certificate.pem"),
    ],
)
def test_whatever_a_file_holds_each_step_has_something_to_say(holder: Learner, name: str):
    path = holder.state / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in (
        b"",
        b"\xff\xfe",
        b"{}",
        b'{"entries": 1, "failures": 1, "order_url": 7, "last_failure": ""}',
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        assert list(states(holder)) == EVERY_STEP


@pytest.mark.parametrize(
    "sections",
    [
        {"domains": ("a..b", "", "*")},
        {"dns": {"nameservers": "x, 127.0.0.1:y, :::"}},
        {"cdn": {"domains": "..", "verify_at": "x"}, "apigateway": {"verify_at": "127.0.0.1:1"}},
        {"files": {"directory": "nowhere"}},
        {"iis": {"password_file": "nowhere"}},
    ],
)
def test_whatever_the_settings_hold_each_step_has_something_to_say(holder: Learner, sections: dict):
    holder.settings(**sections)
    assert list(states(holder)) == EVERY_STEP


# The command.


def test_the_command_prints_a_line_a_step_and_a_hint_below_what_is_wrong(
    learner: Learner, capsys: pytest.CaptureFixture[str]
):
    folder = folder_of_up(learner)
    open_account(learner)
    assert check(folder) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:3]] == ["done", "not", "done"]
    assert printed[-1] == "2 done, 11 not yet"

    replace(learner.state / "account.key", new_key())
    assert check(folder) == 1
    printed = capsys.readouterr().out.splitlines()
    text = "account.json names an account, but the CA has none for account.key"
    assert printed[2] == f"wrong    03  account                 {text}"
    assert printed[3].startswith("         hint  an account belongs to a key")
    assert printed[-1] == "1 done, 1 wrong, 11 not yet"


def test_no_secret_is_printed(holder: Learner, capsys: pytest.CaptureFixture[str]):
    holder.run("10")
    check(folder_of_up(holder))
    printed = capsys.readouterr().out
    assert "PRIVATE KEY" not in printed
    for secret in (holder.lab.access_key.access_key_secret, (holder.folder / "pfx-password.txt").read_text()):
        assert secret.strip() not in printed


def test_without_a_lab_it_says_so(tmp_path: Path):
    with pytest.raises(LabError, match="no lab is up in .*python3 lab up") as caught:
        check(tmp_path)
    assert caught.value.exit_code == 2


def test_a_lab_that_was_killed_is_told_from_one_that_runs(new_lab: Callable[..., Lab], tmp_path: Path):
    learner = Learner(tmp_path / "learner", new_lab())
    folder = folder_of_up(learner)
    open_account(learner)
    learner.lab.stop()
    with pytest.raises(LabError, match="does not answer: Connection refused"):
        check(folder)


def test_settings_that_cannot_be_read_are_named(holder: Learner):
    folder = folder_of_up(holder)
    (folder / "lab.ini").write_text("nonsense")
    with pytest.raises(LabError, match="lab.ini cannot be read") as caught:
        check(folder)
    assert caught.value.exit_code == 2


def until(lines: Iterable[str], text: str) -> None:
    seen = []
    for line in lines:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"never said {text!r}: {seen}")


@posix
def test_watch_shows_what_changes_until_ctrl_c(learner: Learner):
    folder = folder_of_up(learner)
    watching = subprocess.Popen(
        [sys.executable, str(ROOT / "lab"), "check", "--watch", "--directory", str(folder)],
        env={**clean_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert watching.stdout is not None
    try:
        until(watching.stdout, "13 not yet")
        open_account(learner)
        until(watching.stdout, "2 done, 11 not yet")
        (folder / "lab.ini").write_text("nonsense")
        until(watching.stdout, "lab.ini cannot be read")
        shutil.copy(learner.ini, folder / "lab.ini")
        until(watching.stdout, "2 done, 11 not yet")
    finally:
        watching.send_signal(signal.SIGINT)
        rest = watching.communicate(timeout=60)[0]
    assert watching.returncode == 0, rest
    assert "Traceback" not in rest
