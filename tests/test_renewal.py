"""common/renewal.py and 11's asking: when to renew, whom to ask, and when to leave the CA alone. RFC 9773."""

import json
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import load_script
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from common import acme, renewal, x509
from common.failure import Failure
from common.state import State

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=timezone.utc)
START, END = NOW + timedelta(days=10), NOW + timedelta(days=12)
step_11 = load_script("11")


def leaf_with(key_identifier: bytes, serial: int) -> crypto_x509.Certificate:
    key = x509.new_private_key("ec256")
    authority = crypto_x509.AuthorityKeyIdentifier(key_identifier, None, None)
    return (
        crypto_x509.CertificateBuilder()
        .subject_name(crypto_x509.Name([]))
        .issuer_name(crypto_x509.Name([]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=90))
        .add_extension(authority, critical=False)
        .sign(key, hashes.SHA256())
    )


def test_the_certificate_identifier_is_that_of_rfc_9773_section_4_1():
    leaf = leaf_with(bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4"), 0x87654321)
    # The serial's first octet is above 7f, so DER puts a zero before it.
    assert x509.certificate_id(leaf) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


@pytest.mark.parametrize(
    ("lifetime", "before_end"),
    [
        (timedelta(days=90), timedelta(days=30)),
        (timedelta(days=64), timedelta(days=64) / 3),
        (timedelta(days=45), timedelta(days=15)),
        (timedelta(days=10), timedelta(days=10) / 3),
        (timedelta(days=9), timedelta(days=4.5)),
        (timedelta(hours=160), timedelta(hours=80)),
    ],
)
def test_without_advice_a_third_of_the_lifetime_is_left_or_half_of_a_short_one(
    lifetime: timedelta, before_end: timedelta
):
    assert abs(NOW + lifetime - renewal.by_lifetime(NOW, NOW + lifetime) - before_end) < timedelta(seconds=1)


def test_a_moment_is_drawn_once_for_a_window_and_kept():
    record = renewal.Record()
    record.heard("01", START, END, None, NOW)
    drawn = record.renew_at
    for hours in range(6, 48, 6):
        record.heard("01", START, END, None, NOW + timedelta(hours=hours))
    assert record.renew_at == drawn
    assert START <= datetime.fromisoformat(drawn) < END


def test_another_window_or_another_certificate_is_drawn_for_anew():
    record = renewal.Record()
    record.heard("01", START, END, None, NOW)
    first = record.renew_at
    record.heard("01", NOW - timedelta(days=2), NOW - timedelta(days=1), None, NOW)
    assert datetime.fromisoformat(record.renew_at) < NOW, "the CA has moved the window: renew now"
    record.heard("02", START, END, None, NOW)
    assert record.renew_at not in ("", first)


def test_moments_are_spread_evenly_over_the_window(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(renewal, "random", random.Random(7))
    quarters = [0, 0, 0, 0]
    for number in range(2000):
        record = renewal.Record()
        record.heard(str(number), START, END, None, NOW)
        quarters[int((datetime.fromisoformat(record.renew_at) - START) / (END - START) * 4)] += 1
    assert min(quarters) > 400


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        (None, timedelta(hours=6)),
        (0.0, timedelta(minutes=1)),
        (3600.0, timedelta(hours=1)),
        (10.0**9, timedelta(days=1)),
    ],
)
def test_the_ca_says_when_to_ask_again_within_a_minute_and_a_day(retry_after: float | None, pause: timedelta):
    record = renewal.Record()
    record.heard("01", START, END, retry_after, NOW)
    assert not record.may_ask("01", NOW + pause - timedelta(seconds=1))
    assert record.may_ask("01", NOW + pause)
    assert record.may_ask("02", NOW)


def test_when_advice_cannot_be_had_what_was_heard_before_still_holds():
    record = renewal.Record()
    record.heard("01", START, END, None, NOW)
    drawn = record.renew_at
    record.not_heard("01", NOW)
    assert record.renew_at == drawn
    record.not_heard("02", NOW)
    assert record.renew_at == ""


def test_advice_to_wait_until_it_is_too_late_is_not_followed():
    record = renewal.Record()
    end = NOW + timedelta(days=90)
    record.heard("01", end + timedelta(days=1), end + timedelta(days=2), None, NOW)
    assert record.due_at(NOW, end) == end - timedelta(days=9)


def test_after_failures_the_next_try_waits_1_10_100_minutes_and_then_a_day():
    record = renewal.Record()
    for minutes in (1, 10, 100, 1440, 1440):
        record.failed("no", None, NOW)
        assert record.pausing_until(NOW) == NOW + timedelta(minutes=minutes)
    assert record.pausing_until(NOW + timedelta(days=1)) is None
    record.succeeded()
    assert record.pausing_until(NOW) is None and record.failures == 0


def test_a_rate_limits_retry_after_is_waited_for():
    record = renewal.Record()
    record.failed("rateLimited", 7200, NOW)
    assert record.pausing_until(NOW) == NOW + timedelta(hours=2)


def test_a_record_comes_back_from_disk(tmp_path: Path):
    record = renewal.Record()
    record.heard("01", START, END, 60, NOW)
    record.failed("no", None, NOW)
    record.installed["07_install_cdn"] = "01"
    record.save(State(tmp_path))
    assert renewal.load(State(tmp_path)) == record


GOOD = {"serial": "", "window": [], "failures": 0, "installed": {}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\udcff",
        "[" * 100_000,
        json.dumps({**GOOD, "renew_at": "soon"}),
        json.dumps({**GOOD, "renew_at": "2026-11-24T03:00:00"}),
        json.dumps({**GOOD, "renew_at": 5}),
        json.dumps({**GOOD, "window": [1, 2]}),
        json.dumps({**GOOD, "failures": "3"}),
        json.dumps({**GOOD, "failures": -5}),
        json.dumps({**GOOD, "installed": []}),
        json.dumps({**GOOD, "what": "is this"}),
    ],
)
def test_a_damaged_record_is_no_reason_not_to_renew(tmp_path: Path, content: str):
    (tmp_path / "renewal.json").write_text(content, errors="surrogateescape")
    assert renewal.load(State(tmp_path)) == renewal.Record()


def window(start: Any, end: Any) -> acme.Answer:
    return acme.Answer("https://ca/ari/x", 200, "OK", {}, {"suggestedWindow": {"start": start, "end": end}})


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-12-01T00:00:00Z", "2026-12-02T00:00:00Z"),
        ("2026-12-01T08:00:00+08:00", "2026-12-02T08:00:00+08:00"),
        ("2026-12-01T00:00:00.000000Z", "2026-12-01T19:00:00-05:00"),
        ("2026-12-01T00:00:00.123456789Z", "2026-12-02T00:00:00.5Z"),
        ("2026-12-01t00:00:00z", "2026-12-02t00:00:00z"),
    ],
)
def test_a_window_may_be_written_in_any_way_of_rfc_3339_and_is_kept_in_utc(start: str, end: str):
    first, last = step_11.suggested_window(window(start, end))
    # As text: what is printed with "UTC" behind it.
    assert (str(first), str(last)) == ("2026-12-01 00:00:00+00:00", "2026-12-02 00:00:00+00:00")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-12-02T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-01T00:00:00", "2026-12-02T00:00:00Z"),
        ("2026-12-01T00:00:00", "2026-12-02T00:00:00"),
        ("soon", "later"),
        (None, None),
        (5, 6),
        ("9999-99-99T00:00:00Z", "x"),
        ("0001-01-01T00:00:00+14:00", "2026-12-01T00:00:00Z"),
        ("2026-12-01T00:00:00Z", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_a_window_that_cannot_be_is_a_failure_in_words(start: Any, end: Any):
    with pytest.raises(Failure, match="suggestedWindow cannot be"):
        step_11.suggested_window(window(start, end))


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_window_is_a_pair_of_moments_or_a_failure(start: str, end: str):
    try:
        first, last = step_11.suggested_window(window(start, end))
    except Failure:
        return
    assert first < last and first.tzinfo is not None
