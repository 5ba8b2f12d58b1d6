"""11_renew.py in the lab: due or not, step by step, many at once, and never twice at the same time."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from canned_server import CannedServer, problem
from conftest import Learner, dns_contents, orders, served
from cryptography import x509
from visitor import Visitor

from common import jws
from common import x509 as our_x509
from lab import Lab


def at(moment: datetime) -> str:
    return moment.isoformat()


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def renewer(lab: Lab, folder: Path, **sections: Any) -> Learner:
    """A learner with an account and quick keys, who installs on both edges."""
    sections = {"certificate": {"key_type": "ec256"}, **sections}
    learner = Learner(folder, lab, **sections)
    learner.series("01", "03")
    return learner


@pytest.fixture
def night(lab: Lab, tmp_path: Path) -> Learner:
    return renewer(lab, tmp_path / "night")


def test_without_a_certificate_it_gets_one_and_installs_it(night: Learner, lab: Lab):
    before = dns_contents(lab)
    run = night.run("11")
    assert run.out == f"{night.state / 'fullchain.pem'}\n"
    assert "there is no certificate yet" in run.err
    assert served(lab.cdn_edge, "www.example.test") == night.serial()
    assert served(lab.apigateway_edge, "api.example.test") == night.serial()
    assert (night.state / "certificate.pfx").exists()
    assert dns_contents(lab) == before
    assert night.json("renewal.json")["installed"] == {
        "07_install_cdn": f"{night.serial()} www.example.test",
        "08_install_apigw": f"{night.serial()} api.example.test",
        "10_pkcs12_iis": f"{night.serial()} 2022",
    }


def test_when_nothing_is_due_it_says_when_and_changes_nothing(night: Learner, lab: Lab):
    night.run("11")
    before, made, calls = snapshot(night.state), orders(lab), len(lab.cloud.calls)
    run = night.run("11")
    assert run.out == ""
    # Newer Pebbles suggest a moment.
    rule = "the CA's suggestion" if night.json("renewal.json")["renew_at"] else "its lifetime"
    assert "nothing to do: due on 20" in run.err and f"by {rule}" in run.err
    after = snapshot(night.state)
    assert {name for name in after if after[name] != before.get(name)} <= {"renewal.json", "trace.jsonl"}
    assert (after.keys(), orders(lab), len(lab.cloud.calls)) == (before.keys(), made, calls)


@pytest.mark.parametrize("reason", ["force", "revoked", "names", "lifetime"])
def test_what_is_due_is_renewed_and_the_old_set_kept(
    reason: str, night: Learner, lab: Lab, new_lab: Callable[..., Lab]
):
    if reason == "lifetime":
        # Twenty seconds of life: it is due when half of them are over.
        lab = new_lab(validity_period=20)
        night = renewer(
            lab, night.folder.parent / "short", cdn={"domains": None}, apigateway={"domains": None}
        )
    night.run("11")
    old = night.serial()
    if reason == "revoked":
        night.run("09")
    if reason == "names":
        night.settings(domains=["example.test", "*.example.test", "www.dev.example.test"])
    if reason == "lifetime":
        # The windows of newer Pebbles are days wide, so what counts may be the last tenth of its life.
        suggests = "renewalInfo" in json.loads(lab.pebble.get(lab.directory_url))
        end = night.chain()[0].not_valid_after_utc
        while utc_now() < end - timedelta(seconds=1.5 if suggests else 9):
            time.sleep(0.1)
    run = night.run("11", *(["--force"] if reason == "force" else []))
    assert night.serial() != old
    assert run.out == f"{night.state / 'fullchain.pem'}\n"
    assert (night.state / "history" / old / "certificate.key").exists()
    # A new key for each certificate.
    keys = {(night.state / "history" / s / "certificate.key").read_bytes() for s in (old, night.serial())}
    assert len(keys) == 2


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(night: Learner, lab: Lab):
    before, made = snapshot(night.state), orders(lab)
    assert "would renew: there is no certificate yet" in night.run("11", "--dry-run").err
    assert (snapshot(night.state), orders(lab)) == (before, made)
    night.run("11")
    before, made = snapshot(night.state), orders(lab)
    assert "would renew" in night.run("11", "--dry-run", "--force").err
    night.settings(cdn={"domains": "www.example.test, static.example.test"})
    assert "would install: 07_install_cdn\n" in night.run("11", "--dry-run").err
    night.settings(files={"directory": "elsewhere"})
    assert "would renew" in night.run("11", "--dry-run").err
    assert not (night.folder / "elsewhere").exists()
    assert snapshot(night.state) == before
    assert orders(lab) == made


def test_a_domain_added_to_the_settings_is_installed_on_without_ordering(night: Learner, lab: Lab):
    night.run("11")
    serial, made = night.serial(), orders(lab)
    night.settings(cdn={"domains": "www.example.test, static.example.test"})
    assert "installed what was missing" in night.run("11").err
    assert served(lab.cdn_edge, "static.example.test") == serial == night.serial()
    assert orders(lab) == made > 0


def test_only_what_is_configured_is_installed(lab: Lab, tmp_path: Path):
    learner = renewer(
        lab,
        tmp_path / "plain",
        cdn={"domains": None},
        apigateway={"domains": None},
        iis={"password_file": None},
    )
    calls = len(lab.cloud.calls)
    learner.run("11")
    products = {call.product.lower() for call in lab.cloud.calls[calls:]}
    assert products == {"alidns"}
    assert not (learner.state / "certificate.pfx").exists()


def test_a_failed_install_leaves_the_old_one_served_and_the_next_run_installs_without_ordering(
    night: Learner, lab: Lab
):
    night.run("11")
    old = night.serial()
    key = lab.cloud.ram.add_access_key(actions={"alidns:*", "apigateway:*"})
    good, night.environment = (
        night.environment,
        {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": key.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": key.access_key_secret,
        },
    )
    run = night.run("11", "--force", code=1)
    new = night.serial()
    assert "Forbidden.RAM on DescribeDomainCertificateInfo" in run.err
    assert served(lab.cdn_edge, "www.example.test") == old
    assert served(lab.apigateway_edge, "api.example.test") == new, "the other install is done"

    # The failure's pause first; then only what is missing.
    night.environment = good
    assert "1 failed in a row" in night.run("11", code=1).err
    made = orders(lab)
    forget_pause(night)
    assert "installed what was missing" in night.run("11").err
    assert (night.serial(), orders(lab)) == (new, made)
    assert served(lab.cdn_edge, "www.example.test") == new


def forget_pause(learner: Learner) -> None:
    """As if the time that a pause takes had gone by."""
    file = learner.state / "renewal.json"
    record = json.loads(file.read_text())
    assert record["try_again_at"]
    record["try_again_at"] = at(utc_now() - timedelta(seconds=1))
    file.write_text(json.dumps(record))


def test_after_failures_it_pauses_longer_each_time_and_force_tries_at_once(night: Learner, lab: Lab):
    night.run("02")
    night.run("04")
    url, made = night.json("pending/order.json")["order_url"], orders(lab)
    for number, minutes in enumerate((1, 10, 100, 1440), start=1):
        lab.cloud.fail_next("DescribeDomains", forbidden())
        before = utc_now()
        night.run("11", code=1)
        record = night.json("renewal.json")
        pause = datetime.fromisoformat(record["try_again_at"]) - before
        assert record["failures"] == number
        assert timedelta(minutes=minutes) <= pause < timedelta(minutes=minutes, seconds=30)
        calls = len(lab.cloud.calls)
        dry = ["--dry-run"] * (number % 2)
        assert "the next try is not before" in night.run("11", *dry, code=1).err
        assert len(lab.cloud.calls) == calls, "a pause asks nobody"
        forget_pause(night)
    assert night.json("pending/order.json")["order_url"] == url and orders(lab) == made, (
        "the order is gone on with"
    )
    lab.cloud.fail_next("DescribeDomains", forbidden())
    night.run("11", code=1)
    night.run("11", "--force")
    assert night.json("renewal.json")["failures"] == 0


def forbidden() -> Any:
    from lab.alibaba import ApiError

    return ApiError("Forbidden.RAM", "User not authorized to operate on the specified resource.", 403)


def test_many_certificates_are_each_their_own(lab: Lab, tmp_path: Path):
    first, second, third = (renewer(lab, tmp_path / name) for name in ("first", "second", "third"))
    folder = tmp_path / "sites"
    folder.mkdir()
    for learner, name in ((first, "a"), (second, "b"), (third, "c")):
        text = learner.ini.read_text().replace("directory = state", f"directory = {learner.state}")
        text = text.replace("password_file = ", f"password_file = {learner.folder}/")
        (folder / f"{name}.ini").write_text(text)
    (folder / "b.ini").write_text("[acme]\nno such = thing\n")
    (folder / "notes.txt").write_text("not settings")
    run = first.run("11", str(folder), code=2)
    assert run.out.splitlines() == [str(first.state / "fullchain.pem"), str(third.state / "fullchain.pem")]
    summary = run.err.partition("summary")[2]
    assert [line.split()[0] for line in summary.splitlines() if ".ini" in line] == ["ok", "FAILED", "ok"]
    assert "there is no such setting" in summary
    assert "there is no settings file" in first.run("11", str(tmp_path / "first" / "state"), code=2).err


def test_a_failure_at_one_does_not_stop_the_others_and_is_the_exit_code(lab: Lab, tmp_path: Path):
    first, second = renewer(lab, tmp_path / "first"), renewer(lab, tmp_path / "second")
    first.settings(domains=["nobody.example.invalid"])
    run = first.run("11", str(first.ini), str(second.ini), code=1)
    assert "no name server has an answer for _acme-challenge.nobody.example.invalid" in run.err
    assert run.out == f"{second.state / 'fullchain.pem'}\n"
    # Of two failures the worse: one at the CA, one in the settings.
    damaged = tmp_path / "damaged.ini"
    damaged.write_text("domains = without a section")
    assert first.run("11", str(first.ini), str(damaged), str(second.ini), code=2).out == ""


def test_a_second_run_at_the_same_time_leaves_and_a_dead_ones_lock_does_not_block(
    new_lab: Callable[..., Lab], tmp_path: Path
):
    lab = new_lab(lags=(0.0, 30.0))
    night = renewer(lab, tmp_path / "night")
    first = night.start("11")
    wait_for(lambda: (night.state / "pending" / "dns_records.json").exists())
    run = night.run("11", code=0)
    assert "another script is at work" in run.err
    assert "another script is at work" in night.run("05", code=1).err
    first.send_signal(signal.SIGKILL)
    first.communicate()
    lab.dns_servers[1].lag = 0.0
    assert (night.state / ".lock").exists()
    night.run("11")
    assert not (night.state / "pending" / "dns_records.json").exists()


def test_ctrl_c_takes_the_records_back(new_lab: Callable[..., Lab], tmp_path: Path):
    lab = new_lab(lags=(0.0, 30.0))
    night = renewer(lab, tmp_path / "night")
    before = dns_contents(lab)
    process = night.start("11")
    wait_for(lambda: dns_contents(lab) != before)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "interrupted" in err
    assert dns_contents(lab) == before


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def advisor(tmp_path: Path) -> Iterator[CannedServer]:
    """A CA that only gives renewal information."""
    (tmp_path / "advisor").mkdir()
    with CannedServer(tmp_path / "advisor") as server:
        directory = server.directory
        server.directory = lambda: {**directory(), "renewalInfo": f"{server.base}/ari"}  # type: ignore[method-assign]
        yield server


def advised(holder: Learner, advisor: CannedServer) -> Learner:
    """A certificate holder whose settings name the CA that gives advice; nothing is installed anywhere."""
    nothing = {"cdn": {"domains": None}, "apigateway": {"domains": None}, "iis": {"password_file": None}}
    holder.settings(acme={"directory": f"{advisor.base}/dir", "ca_bundle": advisor.ca_bundle}, **nothing)
    return holder


def window(start: datetime, end: datetime, **more: str) -> Any:
    info = {
        "suggestedWindow": {"start": at(start).replace("+00:00", "Z"), "end": at(end).replace("+00:00", "Z")},
        **more,
    }
    return 200, {"Retry-After": "21600"}, json.dumps(info).encode()


def test_the_cas_advice_is_asked_kept_and_shown(holder: Learner, advisor: CannedServer):
    start = utc_now() + timedelta(days=20)
    advisor.answer = lambda path, body: window(
        start, start + timedelta(days=2), explanationURL="https://ca.example/why"
    )
    learner = advised(holder, advisor)
    run = learner.run("11")
    leaf = x509.load_pem_x509_certificate((learner.state / "certificate.pem").read_bytes())
    asked = [path for method, path, *_ in advisor.requests if path.startswith("/ari")]
    assert asked == [f"/ari/{our_x509.certificate_id(leaf)}"]
    assert "by the CA's suggestion" in run.err
    assert "https://ca.example/why" in run.err
    drawn = learner.json("renewal.json")["renew_at"]
    assert start <= datetime.fromisoformat(drawn) < start + timedelta(days=2)

    # Not asked again before the CA wants it, and then not drawn again.
    learner.run("11")
    assert len([1 for _, path, *_ in advisor.requests if path.startswith("/ari")]) == 1
    record = learner.json("renewal.json")
    record["ask_again_at"] = at(utc_now() - timedelta(seconds=1))
    (learner.state / "renewal.json").write_text(json.dumps(record))
    learner.run("11")
    assert len([1 for _, path, *_ in advisor.requests if path.startswith("/ari")]) == 2
    assert learner.json("renewal.json")["renew_at"] == drawn


def test_a_window_in_the_past_means_now(holder: Learner, advisor: CannedServer):
    advisor.answer = lambda path, body: window(utc_now() - timedelta(days=2), utc_now() - timedelta(days=1))
    run = advised(holder, advisor).run("11", "--dry-run")
    assert "would renew: due on" in run.err


@pytest.mark.parametrize(
    "answer",
    [
        problem("malformed", 404),
        (503, {"Retry-After": "86400"}, b"<html>"),
        (200, {}, b"{}"),
        (200, {}, b'{"suggestedWindow": {"start": "x", "end": "y"}}'),
        (200, {}, b'{"suggestedWindow": {"start": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}}'),
        (200, {}, b"[" * 10_000),
    ],
)
def test_without_usable_advice_it_goes_by_the_lifetime(answer: Any, holder: Learner, advisor: CannedServer):
    advisor.answer = lambda path, body: answer
    run = advised(holder, advisor).run("11")
    assert "no advice from the CA" in run.err
    assert "nothing to do: due on" in run.err and "by its lifetime" in run.err


def at_the(advisor: CannedServer, holder: Learner, order: Callable[[dict[str, Any]], Any]) -> Learner:
    """A holder who is due at the CA that gives advice, and whose orders are answered by order(payload)."""

    def answer(path: str, body: Any) -> Any:
        if path.startswith("/ari"):
            return window(utc_now() - timedelta(days=2), utc_now() - timedelta(days=1))
        payload = json.loads(jws.b64url_decode(body["payload"])) if body["payload"] else None
        return order(payload) if path == "/order" else problem("serverInternal", 500)

    advisor.answer = answer
    learner = advised(holder, advisor)
    account = json.loads((learner.state / "account.json").read_text())
    account["directory"] = f"{advisor.base}/dir"
    (learner.state / "account.json").write_text(json.dumps(account))
    return learner


LIMITED = problem("rateLimited", 429, "too many orders")


@pytest.mark.parametrize(
    ("status", "headers", "content", "words"),
    [
        (429, {**LIMITED[1], "Retry-After": "10800"}, LIMITED[2], "too many orders"),
        (503, {"Content-Type": "text/html", "Retry-After": "in three hours"}, b"<html>busy</html>", "503"),
    ],
)
def test_a_rate_limit_is_told_kept_and_waited_for(
    status: int, headers: dict[str, str], content: bytes, words: str, holder: Learner, advisor: CannedServer
):
    if headers["Retry-After"] == "in three hours":
        headers = {**headers, "Retry-After": format_datetime(utc_now() + timedelta(hours=3), usegmt=True)}
    learner = at_the(advisor, holder, lambda payload: (status, headers, content))
    serial = learner.serial()
    assert "the CA asks to wait 3.0 h" in learner.run("11", code=1).err
    posts = [path for method, path, *_ in advisor.requests if method == "POST"]
    again = learner.run("11", code=1)
    assert words in again.err and "the next try is not before" in again.err
    assert [path for method, path, *_ in advisor.requests if method == "POST"] == posts == ["/order"]
    until = datetime.fromisoformat(learner.json("renewal.json")["try_again_at"]) - utc_now()
    assert timedelta(hours=2, minutes=59) < until <= timedelta(hours=3)
    assert learner.serial() == serial


def test_an_order_names_what_it_replaces_and_is_repeated_without_where_that_was_replaced_before(
    holder: Learner, advisor: CannedServer
):
    payloads = []

    def order(payload: dict[str, Any]) -> Any:
        payloads.append(payload)
        return (
            problem("alreadyReplaced", 409)
            if "replaces" in payload
            else problem("rateLimited", 429, "enough")
        )

    learner = at_the(advisor, holder, order)
    leaf = x509.load_pem_x509_certificate((learner.state / "certificate.pem").read_bytes())
    run = learner.run("11", code=1)
    assert [payload.get("replaces") for payload in payloads] == [our_x509.certificate_id(leaf), None]
    assert payloads[0]["identifiers"] == payloads[1]["identifiers"]
    assert "alreadyReplaced: ordered again without saying what it replaces" in run.err


def test_a_short_lived_certificate_is_replaced_three_times_without_one_failed_handshake(
    new_lab: Callable[..., Lab], tmp_path: Path
):
    lab = new_lab(validity_period=20)
    # The moment that a newer Pebble suggests may be too close to the end of a life that is so short.
    suggests = "renewalInfo" in json.loads(lab.pebble.get(lab.directory_url))
    forced = ["--force"] if suggests else []
    night = renewer(lab, tmp_path / "night")
    before = dns_contents(lab)
    night.run("11")
    edges = [(lab.cdn_edge, "www.example.test"), (lab.apigateway_edge, "api.example.test")]
    serials = [night.serial()]
    end = time.monotonic() + 200
    with Visitor(lab.issuer_roots(), edges) as visitor:
        while len(serials) < 4:
            assert time.monotonic() < end
            night.run("11", *forced)
            if night.serial() != serials[-1]:
                serials.append(night.serial())
                assert [served(address, name) for address, name in edges] == [serials[-1]] * 2
    assert visitor.failures == []
    assert visitor.handshakes > 20
    assert len(set(serials)) == 4
    assert {path.name for path in (night.state / "history").iterdir()} >= set(serials)
    assert dns_contents(lab) == before
