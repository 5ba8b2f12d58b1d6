"""12_change_account_key.py and 13_deactivate_account.py in the lab, and several CAs side by side."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canned_server import CannedServer, Reply, problem
from conftest import SCRIPTS, Learner, account_of, clean_environment, key_of

from common import acme, config, jws
from common import x509 as our_x509
from lab import Lab

# The scripts that go to the CA as the account, in a folder where each has something to do.
NEEDS_ACCOUNT = (["03"], ["04"], ["05"], ["06"], ["09"], ["11", "--force"])


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


@pytest.fixture
def choosy_ca(tmp_path: Path) -> Iterator[CannedServer]:
    """A CA that refuses a change of the account's key in its own words, and knows no key."""
    (tmp_path / "ca").mkdir()
    with CannedServer(tmp_path / "ca") as server:
        directory = server.directory
        urls = {"keyChange": f"{server.base}/key", "newAccount": f"{server.base}/account"}
        server.directory = lambda: {**directory(), **urls}  # type: ignore[method-assign]
        yield server


def member_of(ca: CannedServer, learner: Learner, key_type: str = "ec256") -> None:
    """Make the CA the learner's, in settings and account.json."""
    learner.settings(
        acme={"directory": f"{ca.base}/dir", "ca_bundle": ca.ca_bundle}, account={"key_type": key_type}
    )
    account = learner.json("account.json")
    account["directory"] = f"{ca.base}/dir"
    (learner.state / "account.json").write_text(json.dumps(account))


def algorithm_asked_for(ca: CannedServer) -> str:
    """The algorithm in the inner JWS of the last key change."""
    body = [body for _, path, _, body in ca.requests if path == "/key"][-1]
    inner = json.loads(jws.b64url_decode(body["payload"]))
    return str(json.loads(jws.b64url_decode(inner["protected"]))["alg"])


@pytest.mark.parametrize("kind", ["badPublicKey", "badSignatureAlgorithm"])
def test_a_key_that_the_ca_never_takes_gives_way_to_one_that_it_takes(
    kind: str, member: Learner, choosy_ca: CannedServer
):
    def answer(path: str, body: object) -> Reply:
        refused = path == "/key" and algorithm_asked_for(choosy_ca) == "ES384"
        return problem(kind, 400, "P-256 only") if refused else (200, {}, b"{}")

    choosy_ca.answer = answer
    member_of(choosy_ca, member, "ec384")
    old = (member.state / "account.key").read_bytes()
    refusal = member.run("12", code=1).err
    assert "P-256 only" in refusal and "choose another [account]" in refusal
    assert (member.state / "account.key").read_bytes() == old
    # What the remedy says can be done.
    member_of(choosy_ca, member, "ec256")
    member.run("12")
    assert algorithm_asked_for(choosy_ca) == "ES256"
    assert (member.state / "account.key").read_bytes() != old


@pytest.mark.parametrize(
    "refusal",
    [
        problem("rateLimited", 429, "later"),
        problem("malformed", 409, "another account has this key"),
        (502, {}, b"<html>"),
    ],
)
def test_a_key_of_which_the_ca_does_not_say_that_it_is_bad_is_kept_and_asked_about(
    refusal: Reply, member: Learner, choosy_ca: CannedServer
):
    choosy_ca.answer = lambda path, body: refusal
    member_of(choosy_ca, member)
    member.run("12", code=1)
    kept = (member.state / "pending" / "account.key").read_bytes()
    choosy_ca.answer = lambda path, body: (
        problem("accountDoesNotExist", 400) if path == "/account" else (200, {}, b"{}")
    )
    assert "the CA has the old key still" in member.run("12").err
    assert (member.state / "account.key").read_bytes() == kept


def test_while_a_key_change_is_unfinished_every_script_says_to_run_12(holder: Learner):
    holder.series("02", "04")
    new_key = our_x509.private_key_pem(our_x509.new_private_key("ec256"))
    (holder.state / "pending" / "account.key").write_bytes(new_key)
    for number, *arguments in (*NEEDS_ACCOUNT, ["03", "--info"], ["13", "--yes"]):
        run = holder.run(number, *arguments, code=2)
        assert run.out == "" and "run 12_change_account_key.py" in run.err, number
    assert holder.json("renewal.json")["failures"] == 0, "no try was made, so none has failed"


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
    for name in ("certificate.pem", "fullchain.pem"):
        shutil.copy(holder.state / name, member.state / name)
    again = member.run("13")
    assert (again.out, "deactivated already" in again.err) == (run.out, True)
    for number, *arguments in (*NEEDS_ACCOUNT, ["12"]):
        refusal = member.run(number, *arguments, code=2)
        assert "is deactivated, for good" in refusal.err and "[files] directory" in refusal.err, number
    # The CA says so too, and a fresh state folder is a fresh start.
    settings = config.load(member.ini)
    ca = acme.connect(
        settings, key_of(member.state / "account.key"), member.json("account.json")["account_url"]
    )
    with pytest.raises(acme.Problem, match="unauthorized"):
        ca.post_as_get(ca.kid or "")
    Learner(tmp_path / "fresh", holder.lab).series("01", "03")


def test_two_cas_side_by_side_do_not_mix(holder: Learner, new_lab: Callable[..., Lab], tmp_path: Path):
    other = Learner(tmp_path / "other", new_lab())
    other.series("01", "03")
    assert holder.run("03", "--info").out != other.run("03", "--info").out
    # The settings of one with the state folder of the other, in which there is something to do for each script.
    holder.series("02", "04")
    other.ini.write_text(other.ini.read_text().replace("directory = state", f"directory = {holder.state}"))
    for number, *arguments in (*NEEDS_ACCOUNT, ["12"], ["13", "--yes"]):
        run = other.run(number, *arguments, code=2)
        assert run.out == ""
        assert holder.lab.directory_url in run.err and other.lab.directory_url in run.err, number
    holder.series("04", "05", "06")
