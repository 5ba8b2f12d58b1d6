"""What an issuance asks, and how it waits: counts, which are exact. python3 lab bench has the seconds."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import ROOT, Learner, clean_environment, open_account

from lab import Lab, bench
from lab.bench import clients, issuance, picture, report
from lab.faults.ca import Reply, Request, document

CLOCK = 0.01  # seconds by which two readings of a clock may be wrong
AT_CA, AT_ALIBABA = 4, 10  # how many requests may be in flight
SLOWER = 1.5  # each pause is so many times the one before
DISTANCE = 0.04  # seconds for a round trip: long enough that requests overlap where they may


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab some way off, with a name server that is behind."""
    folder = tmp_path_factory.mktemp("far")
    with Lab(folder, lags=(0.0, 1.5), round_trips=(DISTANCE, DISTANCE)) as running:
        yield running


@pytest.fixture
def customer(far: Lab, tmp_path: Path) -> Callable[[int], Learner]:
    """Make learners who have an account, want a certificate for so many names, and install it nowhere."""

    def make(names: int) -> Learner:
        domains = ["example.test", "*.example.test", *(f"n{number}.example.test" for number in range(98))]
        nowhere = {"cdn": {"domains": None}, "apigateway": {"domains": None}, "iis": {"windows": None}}
        learner = Learner(tmp_path / "customer", far)
        learner.settings(domains[:names], certificate={"key_type": "ec256"}, **nowhere)
        open_account(learner)
        forget(far)
        return learner

    return make


def forget(lab: Lab) -> None:
    """Count from here."""
    for record in (lab.ca.exchanges, lab.ca.traffic, lab.cloud.calls, lab.gateway.traffic):
        record.clear()
    for server in lab.dns_servers:
        server.queries.clear()


def most_in_flight(traffic: Any) -> int:
    """How many of these (began, ended) were under way at one moment."""
    # At the same moment an end comes first.
    edges = sorted([(began, 1) for began, _ in traffic] + [(ended, -1) for _, ended in traffic])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def pauses(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]


def assert_ever_slower(moments: list[float], first: float = 0.25) -> None:
    """No pause between two looks is shorter than it may be."""
    for number, pause in enumerate(pauses(moments)):
        assert pause >= min(first * SLOWER**number, 2) - CLOCK


@pytest.mark.parametrize("names", [1, 2, 20, 100])
def test_three_scripts_ask_the_ca_for_each_thing_once(
    customer: Callable[[int], Learner], far: Lab, names: int
) -> None:
    learner = customer(names)
    learner.run("02")
    learner.series("04", "05", "06")
    asked = Counter(exchange.resource for exchange in far.ca.exchanges)
    polls = asked.pop("order") - 2  # 05 and 06 read the order before they begin
    nonces = asked.pop("newNonce") - 3
    assert asked == {
        "directory": 3,
        "newOrder": 1,
        "authorization": names,
        "challenge": names,
        "finalize": 1,
        "certificate": 1,
    }
    # Each request in flight beside another needs a nonce of its own.
    assert 0 <= nonces <= min(AT_CA - 1, names // 4)
    # At least one to see the order ready, and one to see it valid; with these it is 2 N + 13, without the nonces.
    assert polls >= 2
    assert Counter(call.action for call in far.cloud.calls) == {
        "DescribeDomains": 1,
        "AddDomainRecord": names,
        "DeleteDomainRecord": names,
    }


@pytest.mark.parametrize("names", [2, 20])
def test_11_asks_less_than_the_scripts_one_by_one(
    customer: Callable[[int], Learner], far: Lab, names: int
) -> None:
    customer(names).run("11")
    asked = Counter(exchange.resource for exchange in far.ca.exchanges)
    more_polls = asked["order"] - 4
    assert asked.total() - more_polls <= 2 * names + 12
    assert asked["directory"] == 1
    assert len(far.cloud.calls) == 2 * names + 1


def test_changes_and_requests_are_made_side_by_side_within_their_limits(
    customer: Callable[[int], Learner], far: Lab
) -> None:
    customer(40).run("11")
    assert 1 < most_in_flight(far.ca.traffic) <= AT_CA
    assert AT_CA < most_in_flight(far.gateway.traffic) <= AT_ALIBABA


def test_changes_of_dns_are_no_more_than_sixty_a_second(customer: Callable[[int], Learner], far: Lab) -> None:
    customer(100).run("11")
    for action in ("AddDomainRecord", "DeleteDomainRecord"):
        moments = [call.time for call in far.cloud.calls if call.action == action]
        assert len(moments) == 100
        # They are timed when answered, and those in flight may all be answered together: seven tenths are safe.
        assert max(sum(0 <= other - moment < 0.7 for other in moments) for moment in moments) <= 60


def test_a_name_server_that_is_behind_is_asked_ever_more_slowly_and_the_other_once(
    customer: Callable[[int], Learner], far: Lab
) -> None:
    customer(2).run("11")
    looked = min(exchange.time for exchange in far.ca.exchanges if exchange.resource == "challenge")
    quick, behind = (
        [query.time for query in server.queries if query.type == "TXT" and query.time < looked]
        for server in far.dns_servers
    )
    assert len(quick) == 1
    assert len(behind) > 3
    assert_ever_slower(behind)


def test_an_order_that_takes_time_is_asked_about_ever_more_slowly(
    customer: Callable[[int], Learner], far: Lab
) -> None:
    learner = customer(2)
    learner.series("02", "04")
    far.faults.on("ca-pending@order*5")
    learner.run("05")
    looked = max(exchange.time for exchange in far.ca.exchanges if exchange.resource == "challenge")
    polls = [e.time for e in far.ca.exchanges if e.resource == "order" and e.time > looked]
    assert len(polls) >= 5
    assert_ever_slower(polls)


def test_a_ca_that_says_how_long_to_wait_is_not_asked_sooner(
    customer: Callable[[int], Learner], far: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = customer(2)
    learner.series("02", "04", "05")
    answer = far.ca.answer
    told = []

    def busy(request: Request) -> Reply:
        reply = answer(request)
        if request.resource == "order" and document(reply)["status"] in ("processing", "valid") and not told:
            told.append(reply)
            return reply.json(status="processing", certificate=None).header("Retry-After", "2")
        return reply

    monkeypatch.setattr(far.ca, "answer", busy)
    learner.run("06")
    assert told
    assert pauses([e.time for e in far.ca.exchanges if e.resource == "order"])[-1] >= 2 - CLOCK


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("03_new_account", ("aliyunsdkcore", "dns", "rich", "alibabacloud_credentials")),
        ("04_new_order", ("aliyunsdkcore", "dns", "rich", "alibabacloud_credentials")),
        ("05_dns_challenge", ("rich", "alibabacloud_credentials")),
        ("06_finalize", ("aliyunsdkcore", "dns", "rich", "alibabacloud_credentials")),
    ],
)
def test_a_script_loads_nothing_heavy_that_it_does_not_use(script: str, heavy: tuple[str, ...]) -> None:
    code = f"import importlib, json, sys; importlib.import_module('{script}'); print(json.dumps(list(sys.modules)))"
    python = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, check=True
    )
    assert not set(heavy) & set(json.loads(python.stdout))


def test_the_bench_counts_what_was_asked_and_finds_the_floor_below_every_client() -> None:
    ours, least = (client for client in clients.CLIENTS if client.name in (clients.OURS, clients.MINIMAL))
    condition = issuance.Condition("near", "a little way off", 0.01, 0.02, (0.0, 0.3))
    with issuance.Bench(condition) as running:
        outcomes = bench.compare(running, [ours, least], names=2, runs=1, limit=60)
    cell = report.Cell(condition, 2, outcomes)
    figures = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, issuance.Run)}
    assert set(figures) == {clients.OURS, clients.MINIMAL}, outcomes
    for run in figures.values():
        assert run.wall >= issuance.floor(condition, 2)
        assert sum(run.parts) == pytest.approx(run.wall)
        assert run.late >= -CLOCK
    assert figures[clients.OURS].alibaba == 2 * 2 + 1
    assert figures[clients.MINIMAL].alibaba == 2
    assert (figures[clients.OURS].left, figures[clients.MINIMAL].left) == (0, 2)
    assert report.table(cell).count("\n| ") == 3
    result = report.Result("2026-11-24", "a machine", {}, {}, {}, [cell])
    assert report.from_json(json.loads(json.dumps(report.as_json(result)))) == result
    assert len(ElementTree.fromstring(picture.draw([cell])).findall(".//{*}rect")) == 3 * len(picture.PARTS)


def test_the_bench_says_why_a_client_brought_no_certificate() -> None:
    broken = clients.Client(
        "broken", "sh", "", lambda site: clients.Job([["sh", "-c", "echo oh; exit 3"]], site.folder / "none")
    )
    with issuance.Bench(issuance.CONDITIONS[0]) as running:
        outcomes = bench.compare(running, [broken], names=1, runs=2, limit=60)
    assert outcomes == {"broken": "exit code 3: oh"}
    assert "exit code 3: oh" in report.table(report.Cell(issuance.CONDITIONS[0], 1, outcomes))


def test_the_page_and_the_readme_say_what_was_measured() -> None:
    docs = ROOT / "docs"
    result = report.from_json(json.loads((docs / "performance.json").read_text(encoding="utf-8")))
    assert report.page(result) in (docs / "performance.md").read_text(encoding="utf-8")
    assert picture.draw(result.cells) == (docs / "performance.svg").read_text(encoding="utf-8")
    assert report.ratios(result, "distance", (2, 20)) in (ROOT / "README.md").read_text(encoding="utf-8")
