"""12_change_account_key.py and 13_deactivate_account.py in the lab, and processes killed at any instant."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCRIPTS, Learner, clean_environment, dns_contents, load_script
from cryptography import x509

from common import acme, config, jws
from common import x509 as our_x509
from common.failure import Failure
from lab import Lab

# Processes that are killed; a long run sets another number: KILLS=50 python3 lab test tests/test_scripts_account.py
KILLS = int(os.environ.get("KILLS", "12"))


def key_of(path: Path) -> jws.PrivateKey:
    return our_x509.load_private_key(path.read_bytes(), path)


def account_of(learner: Learner, key: jws.PrivateKey) -> str | None:
    """The account that the CA knows a key by, asked by the test itself; None when there is none."""
    settings = config.load(learner.ini)
    ca = acme.connect(settings, key)
    try:
        return ca.post(ca.url("newAccount"), {"onlyReturnExisting": True}).location
    except acme.Problem as problem:
        assert problem.type == "accountDoesNotExist"
        return None


@pytest.fixture
def member(lab: Lab, tmp_path: Path) -> Learner:
    """A learner with an account of their own, which may be changed and ended."""
    learner = Learner(tmp_path / "member", lab)
    learner.series("01", "03")
    return learner


def test_the_account_has_the_new_key_and_the_old_one_is_refused_and_kept(member: Learner):
    old, account = key_of(member.state / "account.key"), member.json("account.json")["account_url"]
    run = member.run("12")
    new = key_of(member.state / "account.key")
    assert account_of(member, new) == account
    assert account_of(member, old) is None
    kept = member.state / "history" / f"account-{jws.thumbprint(old)}.key"
    assert jws.thumbprint(key_of(kept)) == jws.thumbprint(old) != jws.thumbprint(new)
    assert kept.stat().st_mode & 0o077 == 0
    assert run.out == f"{account}\n"
    assert not (member.state / "pending" / "account.key").exists()
    assert member.run("03", "--info").out == f"{account}\n"
    member.series("02", "04")


@pytest.mark.parametrize("key_type", ["ec384", "rsa2048"])
def test_the_new_key_is_of_the_type_in_the_settings(member: Learner, key_type: str):
    member.settings(account={"key_type": key_type})
    member.run("12")
    algorithm = jws.algorithm(key_of(member.state / "account.key"))
    assert algorithm == {"ec384": "ES384", "rsa2048": "RS256"}[key_type]
    member.run("03", "--info")


class PowerCut(BaseException):
    """The process is gone at this instant."""


@pytest.mark.parametrize(
    "instant", ["new key on disk", "before the POST", "after the POST", "old key kept", "key replaced"]
)
def test_a_change_that_broke_off_is_finished_by_the_next_run(
    instant: str, member: Learner, monkeypatch: pytest.MonkeyPatch
):
    step_12 = load_script("12")
    old, account = key_of(member.state / "account.key"), member.json("account.json")["account_url"]
    settings = config.load(member.ini)
    real_change, real_write = step_12.change_key, type(settings.state).write
    writes = {
        "new key on disk": "pending/account.key",
        "old key kept": "history/",
        "key replaced": "account.key",
    }

    def change(*arguments: object) -> None:
        if instant == "before the POST":
            raise PowerCut
        real_change(*arguments)
        if instant == "after the POST":
            raise PowerCut

    def write(state: object, name: str, content: bytes) -> Path:
        path = real_write(state, name, content)
        if instant in writes and name.startswith(writes[instant]):
            raise PowerCut
        return path

    monkeypatch.setattr(step_12, "change_key", change)
    monkeypatch.setattr(type(settings.state), "write", write)
    with pytest.raises(PowerCut):
        step_12.main(settings)
    monkeypatch.undo()

    for number in ("03", "04"):
        refusal = member.run(number, code=2).err
        assert "12_change_account_key.py" in refusal or "02_create" in refusal
    assert "12_change_account_key.py" in member.run("03", code=2).err
    member.run("12")
    new = key_of(member.state / "account.key")
    assert account_of(member, new) == account
    assert jws.thumbprint(new) != jws.thumbprint(old)
    assert not (member.state / "pending" / "account.key").exists()
    kept = {jws.thumbprint(key_of(path)) for path in (member.state / "history").glob("account-*.key")}
    assert jws.thumbprint(old) in kept
    member.run("03", "--info")


def test_a_refused_change_leaves_the_old_key_in_use(member: Learner, monkeypatch: pytest.MonkeyPatch):
    step_12 = load_script("12")
    account = member.json("account.json")["account_url"]

    def refused(*_: object) -> None:
        raise Failure("no", "none")

    monkeypatch.setattr(step_12, "change_key", refused)
    with pytest.raises(Failure):
        step_12.main(config.load(member.ini))
    assert account_of(member, key_of(member.state / "account.key")) == account


def test_deactivation_asks_and_a_no_changes_nothing(member: Learner):
    if os.name == "nt":
        pytest.fail("this test needs a pseudo-terminal; write it for Windows")
    assert "nothing was changed" in at_a_terminal(member, "no\n")
    member.run("03", "--info")
    assert "deactivated" in at_a_terminal(member, "yes\n")
    assert "is deactivated, for good" in member.run("03", "--info", code=2).err


def at_a_terminal(learner: Learner, typed: str) -> str:
    """Run 13 at a terminal, type something, and return what is on the screen at its end."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS["13"]), "--config", str(learner.ini)],
        env={**clean_environment(), "TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    os.write(master, typed.encode())
    screen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        screen += piece
    os.close(master)
    assert process.wait(timeout=60) == 0
    return screen.decode()


def test_without_a_terminal_it_wants_yes_and_then_every_script_says_it_plainly(
    holder: Learner, tmp_path: Path
):
    member = Learner(tmp_path / "member", holder.lab)
    member.series("01", "02", "03", "04")
    assert "--yes" in member.run("13", code=2).err
    run = member.run("13", "--yes")
    assert run.out == f"{member.json('account.json')['account_url']}\n"
    shutil.copy(holder.state / "certificate.pem", member.state / "certificate.pem")
    for number in ("03", "04", "05", "06", "09", "12", "13"):
        refusal = member.run(number, code=2)
        assert "is deactivated, for good" in refusal.err and "[files] directory" in refusal.err, number
    # The CA says so too, and a fresh state folder is a fresh start.
    settings = config.load(member.ini)
    ca = acme.connect(
        settings, key_of(member.state / "account.key"), member.json("account.json")["account_url"]
    )
    with pytest.raises(acme.Problem, match="unauthorized"):
        ca.post_as_get(ca.kid or "")
    Learner(tmp_path / "fresh", holder.lab).series("01", "03")


def test_two_cas_side_by_side_do_not_mix(member: Learner, new_lab: Callable[..., Lab], tmp_path: Path):
    other_lab = new_lab()
    other = Learner(tmp_path / "other", other_lab)
    other.series("01", "03")
    assert member.run("03", "--info").out != other.run("03", "--info").out
    # The settings of one with the state folder of the other.
    other.ini.write_text(other.ini.read_text().replace("directory = state", f"directory = {member.state}"))
    for number in ("03", "12", "13"):
        refusal = other.run(number, code=2).err
        assert member.lab.directory_url in refusal and other_lab.directory_url in refusal


def check_state(state: Path) -> None:
    """At any instant: whole keys, and a certificate set that matches itself."""
    for path in state.rglob("*.key"):
        if path.name != "eab.key":
            key_of(path)
    if (state / "certificate.pem").exists():
        chain = our_x509.split_chain((state / "fullchain.pem").read_bytes(), state)
        leaf = x509.load_pem_x509_certificate((state / "certificate.pem").read_bytes())
        assert chain[0] == leaf
        assert chain[1:] == our_x509.split_chain((state / "chain.pem").read_bytes(), state)
        key = key_of(state / "certificate.key")
        assert our_x509.public_key_der(key) == our_x509.public_key_der(leaf)


def test_processes_killed_at_random_instants_lose_nothing(new_lab: Callable[..., Lab], tmp_path: Path):
    lab = new_lab(lags=(0.0, 0.2))
    member = Learner(tmp_path / "member", lab, certificate={"key_type": "ec256"})
    member.series("01", "03")
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


def orders(lab: Lab) -> int:
    """How many orders the CA has taken, from its log."""
    return (lab.directory / "pebble.log").read_text().count("Added order")
