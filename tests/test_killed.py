"""Scripts killed: whatever the instant, the next run goes on and nothing is lost.

CI kills a few processes. A long run kills as many as it is told, and from fifty on also one at every instant:
KILLS=200 python3 lab test tests/test_killed.py -s
"""

import collections
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    SCRIPTS,
    Learner,
    account_of,
    clean_environment,
    dns_contents,
    key_of,
    open_account,
    orders,
    served,
)
from cryptography import x509
from fault_matrix import Workshop
from fault_matrix import check_state as check_every_file

from common import jws
from common import x509 as our_x509
from lab import Lab

KILLS = int(os.environ.get("KILLS", "5"))
EVERY_INSTANT = KILLS >= 50
NOWHERE = {"cdn": {"domains": None}, "apigateway": {"domains": None}, "iis": {"password_file": None}}


def die(learner: Learner, pattern: str, number: str, may_live: bool = False) -> list[str]:
    """Run a script until what it did matches; returns the instants, the last of which was not lived to see.

    may_live: it is fine when the script ends before that
    """
    file = learner.folder / "instants.txt"
    launcher = Path(__file__).with_name("dying_process.py")
    run = subprocess.run(
        [sys.executable, launcher, file, pattern, SCRIPTS[number], "--config", learner.ini],
        env={**clean_environment(), **learner.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == -signal.SIGKILL or (run.returncode == 0 and may_live), run.stderr
    return file.read_text().splitlines()


def check_state(state: Path) -> None:
    """At any instant: whole keys, whole JSON, no order without its key, and a certificate set that matches itself."""
    for path in state.rglob("*.key"):
        key_of(path)
    for path in state.rglob("*.json"):
        json.loads(path.read_text())
    if (state / "pending" / "order.json").exists():
        assert (state / "pending" / "certificate.key").exists(), (
            "the order would be gone on with for another key"
        )
    # The last file to be put in place: where it is not, there is no set yet.
    if (state / "fullchain.pem").exists():
        chain = our_x509.split_chain((state / "fullchain.pem").read_bytes(), state)
        leaf = x509.load_pem_x509_certificate((state / "certificate.pem").read_bytes())
        assert chain[0] == leaf
        assert chain[1:] == our_x509.split_chain((state / "chain.pem").read_bytes(), state)
        assert our_x509.public_key_der(key_of(state / "certificate.key")) == our_x509.public_key_der(leaf)


def due_now(learner: Learner) -> None:
    """As if the CA had said to renew by now, and not to ask again."""
    file = learner.state / "renewal.json"
    known = json.loads(file.read_text()) if file.exists() else {"window": [], "failures": 0, "installed": {}}
    word = {"renew_at": "2026-01-01T00:00:00+00:00", "ask_again_at": "2999-01-01T00:00:00+00:00"}
    file.write_text(json.dumps({**known, "serial": learner.serial(), **word}))


@pytest.fixture
def night(holder: Learner) -> Learner:
    """A learner whose certificate is due, and is installed nowhere; one name, so that one thing follows another.

    A name that this account has never proven: Pebble, told to reuse no authorization, still does one time in a hundred.
    """
    name = f"night-{secrets.token_hex(4)}.example.test"
    holder.settings(domains=[name], certificate={"key_type": "ec256"}, **NOWHERE)
    return holder


# What 11 was about to do.
IN_11 = {
    "order": "POST /order-plz",
    # The one instant at which nobody can know of the order that the CA has made: another has to be made.
    "keep the order": "os.rename .*/pending/order.json$",
    "begin a TXT record": "os.rename .*/pending/dns_records.json$",
    # The record is in the zone, and the journal does not know what it is called there.
    "keep a TXT record's id": r"send DomainName=(.|\n)*os.rename .*/pending/dns_records.json$",
    "delete a TXT record": "send RecordId=",
    "finalize": "POST /finalize-order",
    "change the set": "os.rename .*/current$",
    "empty pending": "os.remove .*/pending/order.json$",
}


@pytest.mark.parametrize("instant", IN_11)
def test_a_renewal_that_died_is_finished_by_the_next_run(instant: str, night: Learner, lab: Lab):
    old, before, made = night.serial(), dns_contents(lab), orders(lab)
    die(night, IN_11[instant], "11")
    check_state(night.state)
    night.run("11")
    check_state(night.state)
    assert night.serial() != old
    assert orders(lab) - made == (2 if instant == "keep the order" else 1)
    assert dns_contents(lab) == before


@pytest.mark.parametrize("file", ["order.json", "certificate.csr", "certificate.key"])
def test_what_a_death_leaves_of_a_finished_order_does_not_spoil_the_next_one(file: str, night: Learner):
    die(night, f"os.remove .*/pending/{file}$", "11")
    check_state(night.state)
    renewed = night.serial()
    night.run("11", "--force")
    assert night.serial() != renewed


def test_a_first_certificate_of_which_not_every_file_is_in_place_is_completed_by_the_next_run(
    lab: Lab, tmp_path: Path
):
    learner = Learner(tmp_path / "first", lab, certificate={"key_type": "ec256"}, **NOWHERE)
    open_account(learner)
    made = orders(lab)
    die(learner, "os.rename .*/state/fullchain.pem$", "11")
    assert (learner.state / "certificate.pem").exists() and not (learner.state / "fullchain.pem").exists()
    assert learner.run("11").out == f"{learner.state / 'fullchain.pem'}\n"
    check_state(learner.state)
    assert orders(lab) - made == 1


@pytest.mark.parametrize("first", [True, False], ids=["first certificate", "renewal"])
def test_killed_at_any_change_or_request_a_night_job_is_finished_by_the_next_run(
    first: bool, new_lab: Callable[..., Lab], tmp_path: Path
):
    lab = new_lab()
    base = Learner(tmp_path / "base", lab, certificate={"key_type": "ec256"})
    open_account(base)
    if not first:
        base.run("11")
    before = dns_contents(lab)

    def another(name: str) -> Learner:
        learner = Learner(tmp_path / name, lab, certificate={"key_type": "ec256"})
        shutil.copytree(base.state, learner.state, symlinks=True)
        if not first:
            due_now(learner)
        return learner

    instants = range(1, len(die(another("unharmed"), "never", "11", may_live=True)) + 1)
    chosen = instants if EVERY_INSTANT else random.Random(f"{first}").sample(instants, 2)
    for number in chosen:
        learner, made = another(str(number)), orders(lab)
        # It does not always ask as often while it waits, so the last of the numbers may not come.
        missed = die(learner, rf"(^|\n){number} ", "11", may_live=True)[-1]
        check_state(learner.state)
        learner.run("11")
        check_state(learner.state)
        assert orders(lab) - made == (2 if re.search(IN_11["keep the order"], missed) else 1), missed
        assert dns_contents(lab) == before, f"{missed}: TXT records are left"
        assert first or learner.serial() != base.serial(), missed
        assert served(lab.cdn_edge, "www.example.test") == learner.serial(), missed
        assert served(lab.apigateway_edge, "api.example.test") == learner.serial(), missed
        assert not missed_installs(learner), missed


def missed_installs(learner: Learner) -> list[str]:
    """The scripts whose install 11 does not know to be done."""
    installed = learner.json("renewal.json")["installed"]
    wanted = ("07_install_cdn", "08_install_apigw", "10_pkcs12_iis")
    return [script for script in wanted if not installed[script].startswith(learner.serial())]


# What 12 was about to do: each of its changes and requests.
IN_12 = {
    "keep the new key": "os.rename .*/pending/account.key$",
    "ask for the directory": "send GET /dir",
    "begin the POST": "send POST /rollover",
    "send the POST's body": 'send {"protected"',
    "keep the old key": "os.rename .*/history/account-",
    "replace the key": "os.rename .*/state/account.key$",
    "empty pending": "os.remove .*/pending/account.key$",
}


@pytest.mark.parametrize("instant", IN_12)
def test_a_key_change_that_died_is_finished_by_the_next_run(instant: str, lab: Lab, tmp_path: Path):
    member = Learner(tmp_path / "member", lab)
    open_account(member)
    old, account = key_of(member.state / "account.key"), member.json("account.json")["account_url"]
    die(member, IN_12[instant], "12")
    if (member.state / "pending" / "account.key").exists():
        assert "run 12_change_account_key.py" in member.run("03", "--info", code=2).err
    member.run("12")
    new = key_of(member.state / "account.key")
    assert jws.thumbprint(new) != jws.thumbprint(old)
    assert (account_of(member, new), account_of(member, old)) == (account, None)
    kept = member.state / "history" / f"account-{jws.thumbprint(old)}.key"
    assert jws.thumbprint(key_of(kept)) == jws.thumbprint(old)
    assert not (member.state / "pending" / "account.key").exists()
    member.run("03", "--info")


def test_processes_killed_at_random_moments_lose_nothing(new_lab: Callable[..., Lab], tmp_path: Path):
    lab = new_lab(lags=(0.0, 0.2))
    member = Learner(tmp_path / "member", lab, certificate={"key_type": "ec256"})
    open_account(member)
    member.run("11")
    account, before = member.json("account.json")["account_url"], dns_contents(lab)
    randomness = random.Random(20261124)
    killed = 0
    for number in range(KILLS):
        script, *arguments = randomness.choice((["11", "--force"], ["11", "--force"], ["12"]))
        process = member.start(script, *arguments)
        # 12 takes a third of a second, 11 two: somewhere within, seldom after.
        time.sleep(randomness.uniform(0.05, 0.35 if script == "12" else 2.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        check_state(member.state)
        if (member.state / "pending" / "account.key").exists():
            member.run("12")
        # An order that was begun for a key without a certificate is gone on with; else one is ordered.
        made, resumable = orders(lab), can_be_resumed(member.state)
        member.run("11", "--force")
        assert orders(lab) - made == (0 if resumable else 1), f"kill {number}"
        check_state(member.state)
        assert dns_contents(lab) == before, f"kill {number}: TXT records are left"
        assert not (member.state / "pending" / "dns_records.json").exists()
        assert member.run("03", "--info").out == f"{account}\n", f"kill {number}: the account is lost"
    assert killed >= KILLS // 2


def can_be_resumed(state: Path) -> bool:
    if not (state / "pending" / "order.json").exists():
        return False
    pending = our_x509.public_key_der(key_of(state / "pending" / "certificate.key"))
    return pending != our_x509.public_key_der(key_of(state / "certificate.key"))


SERIES = ("01", "02", "03", "04", "05", "06", "07", "08", "10", "09")


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


def public_keys(state: Path) -> set[bytes]:
    """The public half of every private key that is still there."""
    return {our_x509.public_key_der(key_of(path)) for path in state.rglob("*.key")}


def test_a_series_killed_at_random_moments_is_finished_by_running_each_script_again(workshop: Workshop):
    lab, randomness = workshop.lab, random.Random(20261124)
    before = dns_contents(lab)
    # How long each script lives; of a forked process nothing of that is imports.
    unharmed, lives = workshop.learner(), {}
    for script in SERIES:
        started = time.monotonic()
        assert workshop.run(unharmed, script).code == 0
        lives[script] = time.monotonic() - started
    hits: collections.Counter[str] = collections.Counter()
    records_left = 0
    # A script that ended before its kill does not count.
    while hits.total() < KILLS:
        learner, made, lost_orders = workshop.learner(), orders(lab), 0
        doomed = randomness.sample(SERIES, min(KILLS - hits.total(), len(SERIES)))
        for script in SERIES:
            if script in doomed:
                pid = workshop.start(learner, script)
                time.sleep(randomness.uniform(0, lives[script]))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                hits[script] += workshop.finish(learner).code == -signal.SIGKILL
                check_every_file(learner.state)
                records_left += dns_contents(lab) != before
                # Only the order that the CA made, and that 04 could not keep the URL of, is made again.
                lost_orders += script == "04" and not (learner.state / "pending" / "order.json").exists()
            keys = public_keys(learner.state)
            run = workshop.run(learner, script)
            assert run.code == 0, f"kill {hits.total()}: {run.all}"
            check_every_file(learner.state)
            assert public_keys(learner.state) >= keys, f"kill {hits.total()}, {script}: a key is lost"
            assert dns_contents(lab) == before, f"kill {hits.total()}, {script}: TXT records are left"
            if script == "08":
                assert served(lab.cdn_edge, "www.example.test") == learner.serial()
                assert served(lab.apigateway_edge, "api.example.test") == learner.serial()
        assert orders(lab) - made <= 1 + lost_orders
        assert lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"] == "Revoked"
    print(
        f"\n{hits.total()} killed: {dict(sorted(hits.items()))}; {records_left} left TXT records to the next run"
    )
