"""What only newer Pebbles do, with the Pebble that is here: Debian 12 has 2.4, $PEBBLE may be any.

Each test holds with every version. Where a Pebble lacks what the test is about, it tells what the scripts do then.
"""

import http.client
import json
import shutil
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from conftest import Learner
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import serialization

from common import acme, config, jws
from common import x509 as our_x509
from lab import Lab

PROFILES = {"long": 90 * 86400, "short": 6 * 86400}
NOWHERE = {"cdn": {"domains": None}, "apigateway": {"domains": None}, "iis": {"password_file": None}}


class Abilities(NamedTuple):
    """What this Pebble can do, oldest first."""

    advice: bool  # renewal information, since 2.6
    profiles: bool  # since 2.7
    advice_on_demand: bool  # since 2.8
    user_agent_required: (
        bool  # since 2.10; and it notices what has been replaced before, and asks DNS over TCP
    )


def ask(lab: Lab, url: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """A request with no header but those given, which is less than any HTTP client sends by itself."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=str(lab.ca_bundle))
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=30)
    content = json.dumps(body) if body is not None else None
    connection.request("POST" if content else "GET", parts.path, content, headers or {})
    with connection.getresponse() as response:
        return response.status, response.read().decode()


def advise(lab: Lab, learner: Learner, answer: dict[str, Any]) -> int:
    """Let Pebble answer so when it is asked for renewal information on the learner's certificate."""
    body = {
        "Certificate": (learner.state / "certificate.pem").read_text(),
        "ARIResponse": json.dumps(answer),
    }
    return ask(lab, f"{lab.management_url}/set-renewal-info/", body, {"User-Agent": "tests"})[0]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("here")
    with Lab(directory, profiles=PROFILES, retry_after=1, authz_reuse=100) as running:
        yield running


@pytest.fixture(scope="module")
def can(here: Lab) -> Abilities:
    directory = json.loads(here.pebble.get(here.directory_url))
    set_advice, _ = ask(here, f"{here.management_url}/set-renewal-info/", {}, {"User-Agent": "tests"})
    without_agent, _ = ask(here, here.directory_url)
    abilities = Abilities(
        advice="renewalInfo" in directory,
        profiles="profiles" in directory["meta"],
        advice_on_demand=set_advice != 404,
        user_agent_required=without_agent == 400,
    )
    assert sorted(abilities, reverse=True) == list(abilities), "this Pebble is none of the known versions"
    return abilities


@pytest.fixture
def learner(here: Lab, tmp_path: Path) -> Learner:
    learner = Learner(tmp_path / "learner", here, certificate={"key_type": "ec256"}, **NOWHERE)
    learner.series("01", "03")
    return learner


def test_without_a_user_agent_a_newer_one_answers_nothing_and_the_scripts_send_theirs(
    here: Lab, can: Abilities, learner: Learner
):
    status, text = ask(here, here.directory_url)
    assert status == (400 if can.user_agent_required else 200)
    assert ("MUST include a User-Agent" in text) == can.user_agent_required
    learner.series("02", "04", "05", "06")


def test_retry_after_is_understood_in_both_its_forms(can: Abilities, learner: Learner):
    learner.series("02", "04", "05")
    ca = acme.account_client(config.load(learner.ini))
    identifiers = learner.json("pending/order.json")["order"]["identifiers"]
    csr = crypto_x509.load_pem_x509_csr((learner.state / "pending" / "certificate.csr").read_bytes())
    payload = {"csr": jws.b64url(csr.public_bytes(serialization.Encoding.DER))}
    answers: list[acme.Answer] = []
    forms: set[bool] = set()
    # Pebble chooses one of the two at random, while it is issuing.
    while len(forms) < 2 and len(answers) < 60:
        # It remembers that the names are proven.
        order = ca.post(ca.url("newOrder"), {"identifiers": identifiers}, brief=True).object(finalize=str)
        answers.append(ca.post(order["finalize"], payload, brief=True))
        if header := answers[-1].headers.get("Retry-After"):
            forms.add(header.isdecimal())
    seen = [answer.retry_after for answer in answers if "Retry-After" in answer.headers]
    # Since 2.5; before that, there is none.
    assert forms == ({True, False} if seen else set())
    assert seen or not can.advice
    # A date says whole seconds, of which one may be over already.
    assert all(seconds is not None and 0 <= seconds <= 1 for seconds in seen)


def test_the_order_is_asked_for_where_new_order_said_whatever_finalize_says(learner: Learner):
    learner.series("02", "04", "05")
    order_url = learner.json("pending/order.json")["order_url"]
    learner.run("06")
    trace = [json.loads(line) for line in (learner.state / "trace.jsonl").read_text().splitlines()]
    ours = [entry for entry in trace if entry["script"] == "06_finalize" and entry.get("method") == "POST"]
    finalized = next(n for n, entry in enumerate(ours) if "csr" in str(entry["sent"]["payload"]))
    # From 2.9 on there is no Location in it.
    assert ours[finalized]["received"].get("Location", order_url) == order_url
    assert ours[finalized + 1]["url"] == order_url


def test_validation_finds_the_records_over_the_transport_that_this_pebble_uses(
    here: Lab, can: Abilities, learner: Learner
):
    server = here.dns_servers[0]
    server.queries.clear()
    learner.series("02", "04", "05")
    # The script's own questions go over UDP, the wait for every name server among them.
    transports = {query.transport for query in server.queries if query.name == "_acme-challenge.example.test"}
    assert transports == ({"udp", "tcp"} if can.user_agent_required else {"udp"})


def test_the_profile_in_the_settings_decides_the_lifetime(here: Lab, can: Abilities, learner: Learner):
    learner.settings(acme={"profile": "short"}, certificate={"key_type": "ec256"}, **NOWHERE)
    learner.run("02")
    run = learner.run("04", code=0 if can.profiles else 2)
    if not can.profiles:
        assert "this CA has no profile short; it offers no profiles" in run.err
        return
    assert "long: valid for 7776000 seconds" in run.err
    learner.series("05", "06")
    leaf = learner.chain()[0]
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert abs(lifetime - timedelta(days=6)) <= timedelta(seconds=1)
    learner.settings(acme={"profile": "shorter"}, certificate={"key_type": "ec256"}, **NOWHERE)
    learner.run("02")
    refused = learner.run("04", code=2)
    assert "this CA has no profile shorter; it offers long, short" in refused.err


def test_renewal_is_due_within_the_window_of_a_ca_that_gives_one(can: Abilities, learner: Learner):
    if can.profiles:
        # Without a profile in the order, Pebble draws one.
        learner.settings(acme={"profile": "long"}, certificate={"key_type": "ec256"}, **NOWHERE)
    learner.run("11")
    run = learner.run("11")
    leaf, record = learner.chain()[0], learner.json("renewal.json")
    third = leaf.not_valid_after_utc - timedelta(days=30)
    if can.advice:
        start, end = (datetime.fromisoformat(edge) for edge in record["window"])
        assert abs(start - (third - timedelta(days=1))) < timedelta(minutes=1)
        assert abs(end - (third + timedelta(days=1))) < timedelta(minutes=1)
        assert start <= datetime.fromisoformat(record["renew_at"]) < end
        assert "by the CA's suggestion" in run.err
    else:
        assert (record["window"], record["renew_at"]) == ([], "")
        assert f"due on {third:%Y-%m-%d %H:%M} UTC by its lifetime" in run.err


def test_a_ca_that_wants_it_renewed_now_is_heeded_told_what_is_replaced_and_is_told_so_once(
    here: Lab, can: Abilities, learner: Learner, tmp_path: Path
):
    learner.run("11")
    # Another machine with a copy of all: it will renew the same certificate, too late.
    copy = Learner(tmp_path / "copy", here, certificate={"key_type": "ec256"}, **NOWHERE)
    shutil.copytree(learner.state, copy.state, symlinks=True)
    leaf = learner.chain()[0]
    past = datetime.now(timezone.utc) - timedelta(days=2)
    window = {
        "start": f"{past:%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{past + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
    }
    answer = {"suggestedWindow": window, "explanationURL": "https://ca.example/why"}
    assert advise(here, learner, answer) == (200 if can.advice_on_demand else 404)

    run = learner.run("11", *([] if can.advice_on_demand else ["--force"]))
    assert ("the CA explains: https://ca.example/why" in run.err) == can.advice_on_demand
    assert (our_x509.certificate_id(leaf) in run.err) == can.advice
    assert learner.chain()[0] != leaf
    late = copy.run("11", "--force")
    assert ("alreadyReplaced: ordered again" in late.err) == can.user_agent_required
    assert copy.chain()[0] not in (leaf, learner.chain()[0])


def test_a_certificate_that_the_ca_does_not_know_is_replaced_all_the_same(
    can: Abilities, learner: Learner, issued: Learner
):
    shutil.copy(issued.state / "certificate.pem", learner.state / "certificate.pem")
    run = learner.series("02", "04")["04"]
    assert (our_x509.certificate_id(issued.chain()[0]) in run.err) == can.advice
    learner.series("05", "06")
    assert learner.chain()[0] != issued.chain()[0]
