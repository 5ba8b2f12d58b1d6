"""The ten scripts in order: what a person does, twice over, with every kind of CA."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPTS, Learner, clean_environment, dns_contents

from lab import Lab

ORDER = ("01", "02", "03", "04", "05", "06", "07", "08", "10", "09")


def in_one_order(value: Any) -> Any:
    """JSON without the order of its lists: a CA may shuffle them at every answer."""
    if isinstance(value, dict):
        return {name: in_one_order(member) for name, member in value.items()}
    return sorted(map(in_one_order, value), key=json.dumps) if isinstance(value, list) else value


def snapshot(learner: Learner) -> dict[str, Any]:
    """Every file of the state folder, but for the trace, which grows, and the PFX, which is salted anew."""
    files = {path.relative_to(learner.state).as_posix(): path for path in learner.state.rglob("*")}
    return {
        name: in_one_order(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for name, path in files.items()
        if path.is_file() and name not in ("trace.jsonl", "certificate.pfx", ".lock")
    }


def test_the_series_from_the_first_key_to_revocation_and_each_second_run_changes_nothing(
    learner: Learner, lab: Lab
) -> None:
    before = dns_contents(lab)
    for number, following in zip(ORDER, (*ORDER[1:8], *["none"] * 3), strict=True):
        first = learner.run(number)
        told = first.err.splitlines()
        assert told[0] == f"settings {learner.ini}   CA {learner.lab.directory_url}"
        assert following == "none" or told[-1] == f"next  {SCRIPTS[following].name}"
        state = snapshot(learner)
        second = learner.run(number)
        assert snapshot(learner) == state, (
            f"the second run of {SCRIPTS[number].name} changed the state folder"
        )
        assert second.out == first.out
    assert dns_contents(lab) == before
    assert lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"] == "Revoked"


def test_standard_output_is_the_result_and_quiet_prints_nothing_else(learner: Learner) -> None:
    said = {number: learner.run(number, "--quiet") for number in ORDER}
    assert {number: run.err for number, run in said.items()} == dict.fromkeys(ORDER, "")
    out = {number: run.out for number, run in said.items()}
    state, serial = learner.state, learner.serial()
    assert out.pop("01") == f"{state / 'account.key'}\n"
    assert out.pop("02") == f"{state / 'pending/certificate.csr'}\n"
    assert out.pop("03") == learner.json("account.json")["account_url"] + "\n"
    assert out["04"].startswith("https://127.0.0.1:")
    assert out["04"].count("\n") == 1
    assert out.pop("05") == out.pop("04")
    assert out.pop("06") == f"{state / 'fullchain.pem'}\n"
    assert out.pop("07") == f"www.example.test {serial}\n"
    assert out.pop("08") == f"api.example.test {serial}\n"
    assert out.pop("09") == f"{serial}\n"
    assert out.pop("10").startswith(f"# {state / 'certificate.pfx'}\n")
    assert out == {}


@pytest.mark.parametrize(
    ("done", "number", "first"),
    [
        ("", "02", "01"),
        ("", "03", "01"),
        ("", "04", "02"),
        ("01 02", "04", "03"),
        ("", "05", "04"),
        ("01 02 03", "05", "04"),
        ("", "06", "04"),
        ("01 02 03", "06", "04"),
        ("01 02 03 04", "06", "05"),
        ("", "07", "06"),
        ("", "08", "06"),
        ("", "09", "06"),
        ("", "10", "06"),
    ],
)
def test_a_script_without_its_predecessor_names_the_one_to_run_first(
    learner: Learner, done: str, number: str, first: str
) -> None:
    learner.series(*done.split())
    calls = len(learner.lab.cloud.calls)
    run = learner.run(number, code=2)
    assert f"run {SCRIPTS[first].name} first" in run.err[run.err.index("what to do:") :]
    assert run.out == ""
    assert len(learner.lab.cloud.calls) == calls


def test_two_settings_files_side_by_side_do_not_disturb_each_other(learner: Learner, lab: Lab) -> None:
    before = dns_contents(lab)
    one, two = (Learner(learner.folder, lab) for _ in range(2))
    for person, name in ((one, "one"), (two, "two")):
        person.ini, person.state = learner.folder / f"{name}.ini", learner.folder / f"state-{name}"
        lab.write_settings(person.ini, domains=["example.test", "*.example.test"], state=f"state-{name}")
        person.series("01", "02", "03", "04")
    # The same names, proven by two accounts at the same moment: four values at one name.
    processes = [person.start("05") for person in (one, two)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert dns_contents(lab) == before
    one.run("06")
    state_of_two = snapshot(two)
    one.series("07", "08", "09", "02")
    assert snapshot(two) == state_of_two
    two.run("06")
    assert one.json("account.json")["account_url"] != two.json("account.json")["account_url"]
    assert one.serial() != two.serial()
    assert lab.pebble.certificate_status(one.chain()[0].serial_number)["Status"] == "Revoked"
    assert lab.pebble.certificate_status(two.chain()[0].serial_number)["Status"] == "Valid"


@pytest.mark.parametrize("where", ["acme.ini", "lab.ini", "$ACME_CONFIG"])
def test_the_settings_file_is_found_without_being_named(learner: Learner, where: str) -> None:
    folder, environment = learner.folder, clean_environment()
    if where == "$ACME_CONFIG":
        folder = learner.folder / "elsewhere"
        folder.mkdir()
        environment["ACME_CONFIG"] = str(learner.ini)
    else:
        learner.ini.rename(learner.folder / where)
    subprocess.run([sys.executable, str(SCRIPTS["01"])], cwd=folder, env=environment, check=True, timeout=60)
    assert (learner.state / "account.key").exists()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"strict": True}, id="strict"),
        pytest.param({"nonce_reject": 20}, id="a fifth of the nonces refused"),
        pytest.param({"nonce_reject": 50}, id="half of the nonces refused"),
        pytest.param({"authz_reuse": 100}, id="every authorization reused"),
        pytest.param({"chain_length": 3, "alternate_roots": 2}, id="long chain with alternates"),
        pytest.param({"va_sleep": 1}, id="validation takes its time"),
    ],
)
def test_the_series_holds_with_a_ca_that_is(
    new_lab: Callable[..., Lab], tmp_path: Path, options: dict[str, Any]
) -> None:
    lab = new_lab(**options)
    learner = Learner(tmp_path / "learner", lab)
    before = dns_contents(lab)
    runs = learner.series("01", "02", "03", "04", "05", "06")
    if "authz_reuse" in options:
        # The second certificate is the one for which the CA has something to remember.
        assert "nothing to prove" in learner.series("02", "04", "05", "06")["05"].err
    if "chain_length" in options:
        learner.series("07", "08", "10")
    learner.run("09")
    assert dns_contents(lab) == before
    assert lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"] == "Revoked"
    assert len(learner.chain()) == 1 + options.get("chain_length", 1)
    # With a fifth, one series in a hundred meets none that is refused.
    if options.get("nonce_reject") == 50:
        assert any("badNonce: signed again" in run.err for run in runs.values())
