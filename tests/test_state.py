"""common/state.py and common/journal.py: files that are private, whole, and true to what happened."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.failure import Failure, Usage
from common.journal import Journal
from common.state import State

SET = ("certificate.key", "certificate.pem", "chain.pem", "fullchain.pem")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate_set(mark: str) -> dict[str, bytes]:
    return {name: f"{name} of {mark}".encode() for name in SET}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_files_are_0600_and_folders_0700_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        path = State(tmp_path / "state").write("pending/certificate.key", b"key")
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert mode(tmp_path / "state") == 0o700


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = State(tmp_path)
    state.write("account.json", "old")

    def power_cut(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(Failure, match="account.json: No space left on device"):
        state.write("account.json", "new")
    assert state.path("account.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["account.json"]


def test_of_many_that_create_a_file_at_once_one_does(tmp_path: Path):
    state, keys = State(tmp_path / "state"), [f"key {number}".encode() for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        created = list(pool.map(lambda key: state.create("account.key", key), keys))
    assert sum(created) == 1
    assert state.path("account.key").read_bytes() == keys[created.index(True)]
    assert sorted(os.listdir(state.folder)) == ["account.key"]


def test_without_hard_links_a_file_is_created_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    state = State(tmp_path)
    assert state.create("account.key", b"key") is True
    assert state.create("account.key", b"other") is False
    assert state.path("account.key").read_bytes() == b"key"
    assert os.listdir(tmp_path) == ["account.key"]


def test_a_missing_file_names_the_script_that_makes_it(tmp_path: Path):
    with pytest.raises(Usage) as refusal:
        State(tmp_path).read("account.key", "01_create_account_key.py")
    assert "account.key is missing" in refusal.value.what
    assert refusal.value.remedy == "run 01_create_account_key.py first"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_damaged_json_file_is_a_clear_error(tmp_path: Path, content: bytes):
    (tmp_path / "account.json").write_bytes(content)
    with pytest.raises(Usage, match="account.json is damaged"):
        State(tmp_path).read_json("account.json", "03_new_account.py")


def test_a_new_certificate_set_replaces_the_old_one_which_stays_in_history(tmp_path: Path):
    state = State(tmp_path)
    state.install_certificate("01", certificate_set("01"))
    state.install_certificate("02", certificate_set("02"))
    for name in SET:
        assert state.path(name).read_bytes() == certificate_set("02")[name]
        assert state.path(f"history/01/{name}").read_bytes() == certificate_set("01")[name]


def test_at_every_step_of_an_installation_the_files_match_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = State(tmp_path)
    state.install_certificate("01", certificate_set("01"))
    seen = []

    def look() -> None:
        seen.append({state.path(name).read_bytes().rpartition(b" ")[2] for name in SET})

    for function in ("replace", "symlink", "fsync"):
        real = getattr(os, function)

        def looking(*arguments: object, real=real) -> object:
            look()
            result = real(*arguments)
            look()
            return result

        monkeypatch.setattr(os, function, looking)
    state.install_certificate("02", certificate_set("02"))
    assert len(seen) > 10
    assert seen[0] == {b"01"} and seen[-1] == {b"02"}
    assert all(len(marks) == 1 for marks in seen)


def test_without_links_the_set_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refused)
    state = State(tmp_path)
    state.install_certificate("01", certificate_set("01"))
    state.install_certificate("02", certificate_set("02"))
    assert all(state.path(name).read_bytes() == certificate_set("02")[name] for name in SET)
    assert not any(state.path(name).is_symlink() for name in SET)
    assert state.path("history/01/certificate.key").read_bytes() == certificate_set("01")["certificate.key"]


def test_a_journal_is_on_disk_before_begin_returns_and_gone_with_its_last_entry(tmp_path: Path):
    file = tmp_path / "pending" / "dns_records.json"
    journal = Journal(State(tmp_path), "pending/dns_records.json", "05")
    first, begun_before = journal.begin(zone="example.com", rr="a", value="1")
    second, _ = journal.begin(zone="example.com", rr="a", value="2")
    assert not begun_before
    assert [entry["value"] for entry in json.loads(file.read_text())["entries"]] == ["1", "2"]
    journal.complete(first, record_id="7")
    assert json.loads(file.read_text())["entries"][0]["record_id"] == "7"
    journal.end(first)
    assert [entry["value"] for entry in json.loads(file.read_text())["entries"]] == ["2"]
    journal.end(second)
    assert not file.exists()


def test_a_journal_knows_what_an_earlier_process_began(tmp_path: Path):
    Journal(State(tmp_path), "journal.json", "05").begin(zone="example.com", rr="a", value="1")
    later = Journal(State(tmp_path), "journal.json", "05")
    entry, begun_before = later.begin(zone="example.com", rr="a", value="1")
    assert begun_before
    assert later.entries() == [entry]
