"""Faults: the mechanism, and what must hold whatever goes wrong: the matrix script × fault.

CI tries every fault once. `python3 lab faults --matrix` tries every fault at every place, and prints a table.
"""

import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fault_matrix
import machine_faults
import pytest
import requests
from conftest import ROOT

from lab import Lab, LabError, bootstrap, faults
from lab import __main__ as lab_main
from lab.faults import ConnectionLost, Faults

CELLS = fault_matrix.lab_cells() + machine_faults.machine_cells()


def each_fault_once() -> list[fault_matrix.Cell]:
    """Of every fault one cell, always the same, and none by chance."""
    by_name: dict[str, list[fault_matrix.Cell]] = {}
    for cell in CELLS:
        if "%" not in cell.fault:
            by_name.setdefault(cell.name, []).append(cell)
    return [random.Random(name).choice(cells) for name, cells in by_name.items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        cells = CELLS if metafunc.config.getoption("matrix") else each_fault_once()
        metafunc.parametrize("cell", cells, ids=str)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fault_matrix.Workshop]:
    workshop = fault_matrix.Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.close()


def test_whatever_goes_wrong_a_script_ends_well_and_the_next_run_gets_it_done(
    cell: fault_matrix.Cell, workshop: fault_matrix.Workshop, record_property
):
    record_property("fault", cell.name)
    of_the_machine = cell in machine_faults.machine_cells()
    fault_matrix.hold(workshop, cell, machine_faults.run if of_the_machine else fault_matrix.under_lab_fault)


# The mechanism.


def through(active: Faults, *labels: str, part: str = "CA") -> str:
    """What comes of a request that is answered "as ever"."""
    try:
        return active.through(part, labels, None, lambda: "as ever")
    except ConnectionLost:
        return "lost"


def test_a_fault_strikes_the_requests_that_it_names():
    active = Faults("ca-reset-before@newOrder")
    assert through(active, "newOrder") == "lost"
    assert through(active, "order") == "as ever"
    assert through(active, "newOrder", part="DNS") == "as ever"
    assert active.struck == {"ca-reset-before": 1}


def test_a_fault_that_names_no_request_strikes_those_of_its_kind():
    active = Faults("ca-reset-before")
    assert through(active, "challenge") == "lost"
    assert through(active, "directory") == "as ever"


def test_a_counted_fault_strikes_so_often_and_is_over():
    active = Faults("ca-reset-before*2")
    assert [through(active, "order") for _ in range(4)] == ["lost", "lost", "as ever", "as ever"]
    assert active.active() == []


def test_what_is_left_of_a_count_is_told():
    active = Faults("ca-reset-before@order*3")
    through(active, "order")
    assert active.active() == ["ca-reset-before@order*2"]


def test_a_count_holds_however_many_ask_at_once():
    active = Faults("ca-reset-before*50")
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(through(active, "order") for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("lost") == 50


def test_chance_is_the_same_for_the_same_seed():
    def outcome(seed: int) -> list[str]:
        active = Faults("ca-reset-before%30", seed=seed)
        return [through(active, "order") for _ in range(300)]

    assert outcome(1) == outcome(1) != outcome(2)
    assert 60 < outcome(1).count("lost") < 120


def test_a_lab_takes_the_seed():
    def outcome(seed: int) -> list[str]:
        lab = Lab(faults=["ca-reset-before%30"], fault_seed=seed)
        return [through(lab.faults, "order") for _ in range(300)]

    assert outcome(1) == outcome(1) != outcome(2)


@pytest.mark.parametrize(("chance", "lost"), [("0", 0), ("100", 50)])
def test_no_chance_and_certainty(chance: str, lost: int):
    active = Faults(f"ca-reset-before%{chance}")
    assert [through(active, "order") for _ in range(50)].count("lost") == lost


def test_two_faults_strike_one_request_together():
    active = Faults("dns-servfail", "dns-dead@2")
    assert through(active, "2", part="DNS") is None
    assert active.struck == {"dns-servfail": 1, "dns-dead": 1}


def test_faults_are_switched_on_and_off_while_the_lab_runs(lab: Lab):
    def status() -> int | None:
        try:
            return requests.get(lab.directory_url, verify=str(lab.ca_bundle), timeout=10).status_code
        except requests.ConnectionError:
            return None

    assert status() == 200
    lab.faults.on("ca-503@directory")
    assert status() == 503
    lab.faults.on("ca-reset-before@directory")
    assert status() is None
    lab.faults.off("ca-reset-before")
    assert status() == 503
    lab.faults.off()
    assert status() == 200


def test_the_same_fault_at_the_same_place_is_replaced_and_elsewhere_is_another():
    active = Faults("dns-lag=5@1", "dns-lag=7@1", "dns-lag@2")
    assert active.active() == ["dns-lag=7@1", "dns-lag@2"]


def test_a_fault_takes_the_number_behind_its_name():
    assert faults.parse("dns-lag=0.5@2*3").value == 0.5
    assert faults.parse("dns-lag").value is None


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("ca-nothing", "there is no fault ca-nothing; python3 lab faults lists them"),
        ("", "a fault is NAME"),
        ("ca-slow@", "a fault is NAME"),
        ("ca-slow*many", "a fault is NAME"),
        ("ca-slow*1%5", "a fault is NAME"),
        ("ca-slow@AddDomainRecord", "WHERE may be directory, newNonce,"),
        ("dns-lag@3", "WHERE may be 1, 2, TXT, CNAME"),
        ("dns-lag=1.2.3", "1.2.3 is not a number"),
        ("ca-slow*0", "COUNT is from 1, CHANCE from 0 to 100"),
        ("ca-slow%101", "COUNT is from 1, CHANCE from 0 to 100"),
    ],
)
def test_what_is_no_fault_is_said_with_what_may_be_said_instead(specification: str, words: str):
    with pytest.raises(LabError, match=re.escape(words)) as caught:
        Faults(specification)
    assert caught.value.exit_code == 2


def test_off_knows_no_unknown_names_either():
    with pytest.raises(LabError, match="there is no fault ca-nothing"):
        Faults().off("ca-nothing")


def test_lab_up_with_an_unknown_fault_ends_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(bootstrap, "enter_virtual_environment", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["lab", "up", "--directory", str(tmp_path), "--fault", "ca-nothing"])
    assert lab_main.main() == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "lab: there is no fault ca-nothing; python3 lab faults lists them\n")
    assert not (tmp_path / "lab.ini").exists()


def test_nobody_waits_for_a_lab_that_has_ended():
    active = Faults("ca-hang")
    waiting = threading.Thread(target=through, args=(active, "order"))
    waiting.start()
    active.end()
    waiting.join(timeout=20)
    assert not waiting.is_alive()


def test_every_fault_has_a_name_of_its_own_and_a_line_in_the_list():
    names = [fault.name for fault in faults.all_faults()]
    assert len(names) == len(set(names))
    for fault in faults.all_faults():
        assert re.search(rf"^  {fault.name} +\w", faults.listed(), re.MULTILINE), fault.name
        assert max(len(line) for line in faults.listed().splitlines()) < 110


PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_the_page_shows_what_lab_faults_prints():
    assert f"<!-- sample: faults -->\n```text\n{faults.listed()}\n```\n" in PAGE


def test_the_page_shows_the_matrix_as_it_is():
    (sample,) = re.findall(r"<!-- sample: matrix -->\n```text\n(.+?)\n```", PAGE, re.DOTALL)
    cells = Counter(cell.name for cell in CELLS)
    assert set(sample.splitlines()) - {"…"} <= set(fault_matrix.table(cells, cells).splitlines())
    assert len(sample.splitlines()) > 5


def test_every_fault_that_the_page_names_can_be_asked_for():
    asked = re.findall(r"^\| `(\S+)` \| \d\d", PAGE, re.MULTILINE) + re.findall(r"--fault ([a-z]\S+)", PAGE)
    assert len(asked) >= 10
    assert Faults(*asked).active() == asked


def test_every_fault_is_in_the_matrix_at_some_script_that_it_can_harm():
    tried = {cell.name for cell in CELLS if "%" not in cell.fault}
    assert tried >= {fault.name for fault in faults.all_faults()}
