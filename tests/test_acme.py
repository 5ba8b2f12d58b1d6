"""common/acme.py: nonces, signed POST, polling and problem documents, on answers that a test chooses."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from canned_server import CannedServer, problem
from hypothesis import given
from hypothesis import strategies as st

from common import acme, jws, x509
from common.failure import Failure

KEY = x509.new_private_key("ec256")


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CannedServer]:
    with CannedServer(tmp_path) as running:
        yield running


def client(ca: CannedServer, kid: str | None = "https://ca/acct/1") -> acme.Client:
    return acme.Client(f"{ca.base}/dir", KEY, kid, ca.ca_bundle)


def protected(body: dict[str, str]) -> dict[str, Any]:
    return json.loads(jws.b64url_decode(body["protected"]))


def one_after_another(*replies: Any) -> Callable[[str, dict[str, Any]], Any]:
    """Answer with each reply in turn, then with the last for ever."""
    left = list(replies)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]


def body(value: Any, **headers: str) -> Any:
    return 200, headers, json.dumps(value).encode()


def test_a_post_is_signed_as_rfc_8555_section_6_2_wants(ca: CannedServer):
    client(ca).post(f"{ca.base}/order", {"a": 1})
    _, _, headers, sent = ca.requests[-1]
    assert headers["Content-Type"] == "application/jose+json"
    assert headers["User-Agent"].startswith("acme-alibaba/")
    assert headers["Accept-Language"] == "en"
    assert set(sent) == {"protected", "payload", "signature"}
    assert set(protected(sent)) == {"alg", "kid", "nonce", "url"}
    assert protected(sent)["url"] == f"{ca.base}/order"


def test_without_an_account_url_the_key_itself_is_in_the_header(ca: CannedServer):
    client(ca, kid=None).post(f"{ca.base}/order", {})
    assert protected(ca.requests[-1][3])["jwk"] == jws.jwk(KEY)
    assert "kid" not in protected(ca.requests[-1][3])


def test_another_key_signs_in_its_own_name(ca: CannedServer):
    other = x509.new_private_key("ec256")
    client(ca).post(f"{ca.base}/order", {}, key=other)
    assert protected(ca.requests[-1][3])["jwk"] == jws.jwk(other)


def test_a_nonce_is_asked_for_once_and_then_taken_from_each_answer(ca: CannedServer):
    talker = client(ca)
    for _ in range(3):
        talker.post(f"{ca.base}/order", {})
    assert [method for method, *_ in ca.requests].count("HEAD") == 0  # the directory's answer held one
    used = [protected(sent)["nonce"] for method, _, _, sent in ca.requests if method == "POST"]
    assert len(set(used)) == 3


def test_a_bad_nonce_is_signed_again_with_the_nonce_of_the_refusal(
    ca: CannedServer, capsys: pytest.CaptureFixture[str]
):
    ca.answer = one_after_another(problem("badNonce", 400), body({"status": "valid"}))
    answer = client(ca).post(f"{ca.base}/order", {"a": 1})
    assert answer.body == {"status": "valid"}
    first, second = [sent for method, _, _, sent in ca.requests if method == "POST"]
    assert first["payload"] == second["payload"]
    assert protected(first)["nonce"] != protected(second)["nonce"]
    assert "badNonce: signed again" in capsys.readouterr().err


def test_bad_nonces_end_after_a_bounded_number_of_tries(ca: CannedServer):
    ca.answer = one_after_another(problem("badNonce", 400))
    with pytest.raises(acme.Problem, match="badNonce"):
        client(ca).post(f"{ca.base}/order", {})
    assert [method for method, *_ in ca.requests].count("POST") == acme.BAD_NONCE_TRIES


def test_a_bad_nonce_without_a_new_one_makes_the_client_ask(ca: CannedServer):
    status, headers, content = problem("badNonce", 400)
    ca.answer = one_after_another((status, {**headers, "Replay-Nonce": ""}, content), body({}))
    client(ca).post(f"{ca.base}/order", {})
    assert ("HEAD", "/nonce") in [(method, path) for method, path, *_ in ca.requests]


def test_reading_is_tried_again_when_the_server_fails_and_writing_is_not(
    ca: CannedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    ca.answer = one_after_another(problem("serverInternal", 500), body({"status": "valid"}))
    assert client(ca).post_as_get(f"{ca.base}/order").status == 200
    ca.answer = one_after_another(problem("serverInternal", 500), body({"status": "valid"}))
    with pytest.raises(acme.Problem, match="serverInternal"):
        client(ca).post(f"{ca.base}/order", {})


def test_a_problem_tells_type_detail_subproblems_and_what_to_do(ca: CannedServer):
    sub = {
        "type": "urn:ietf:params:acme:error:caa",
        "detail": "CAA forbids",
        "identifier": {"type": "dns", "value": "b.example"},
    }
    ca.answer = one_after_another(
        problem("rejectedIdentifier", 403, "some names are not for us", subproblems=[sub])
    )
    with pytest.raises(acme.Problem) as refusal:
        client(ca).post(f"{ca.base}/order", {})
    assert "403 rejectedIdentifier some names are not for us" in refusal.value.what
    assert "b.example: caa CAA forbids" in refusal.value.what
    assert "[certificate] domains" in refusal.value.remedy


def test_a_rate_limit_tells_how_long_to_wait(ca: CannedServer):
    status, headers, content = problem("rateLimited", 429, "too many")
    ca.answer = one_after_another((status, {**headers, "Retry-After": "7200"}, content))
    with pytest.raises(acme.Problem, match=r"asks to wait 2\.0 h"):
        client(ca).post(f"{ca.base}/order", {})


@pytest.mark.parametrize(
    "reply",
    [
        (503, {"Content-Type": "text/html", "Retry-After": "3600"}, b"<html>busy</html>"),
        (400, {"Content-Type": "application/problem+json"}, b"[1, 2]"),
        (400, {"Content-Type": "application/problem+json"}, b"{"),
        (
            400,
            {"Content-Type": "application/problem+json"},
            b'{"type": 5, "detail": null, "subproblems": "x"}',
        ),
        (400, {"Content-Type": "application/problem+json"}, b'{"subproblems": [1, {"identifier": 3}, {}]}'),
        (400, {}, b"\xff\xfe"),
        (500, {"Retry-After": "3600"}, b""),
    ],
)
def test_an_error_that_is_no_problem_document_is_still_a_clear_failure(ca: CannedServer, reply: Any):
    ca.answer = one_after_another(reply)
    with pytest.raises(acme.Problem, match=str(reply[0])) as refusal:
        client(ca).post(f"{ca.base}/order", {})
    assert refusal.value.remedy


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"null", b'"text"', b"[" * 100_000])
def test_an_answer_that_is_no_object_is_a_clear_failure(ca: CannedServer, content: bytes):
    ca.answer = one_after_another((200, {}, content))
    with pytest.raises(Failure, match="not a JSON object"):
        client(ca).post(f"{ca.base}/order", {}).object()


@pytest.mark.parametrize("order", [{}, {"status": 5}, {"status": None}, {"status": ["valid"]}])
def test_a_member_that_is_missing_or_of_another_type_is_named(ca: CannedServer, order: dict[str, Any]):
    ca.answer = one_after_another(body(order))
    with pytest.raises(Failure, match="no usable status"):
        client(ca).post(f"{ca.base}/order", {}).object(status=str)


def test_a_missing_location_is_a_clear_failure(ca: CannedServer):
    answer = client(ca).post(f"{ca.base}/order", {})
    with pytest.raises(Failure, match="no Location"):
        _ = answer.location


def test_a_redirect_is_refused(ca: CannedServer):
    ca.answer = one_after_another((307, {"Location": f"{ca.base}/elsewhere"}, b""))
    with pytest.raises(Failure, match="redirected to"):
        client(ca).post(f"{ca.base}/order", {})
    assert ca.requests[-1][1] == "/order"


def test_an_address_that_is_not_https_is_never_asked(ca: CannedServer):
    with pytest.raises(Failure, match="not https"):
        client(ca).post(ca.base.replace("https", "http") + "/order", {})
    assert ca.requests[-1][0] == "GET"


def test_an_endless_answer_is_cut_off(ca: CannedServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    ca.answer = one_after_another((200, {}, b"x" * (acme.LARGEST_BODY + 1)))
    with pytest.raises(Failure, match="longer than"):
        client(ca).post(f"{ca.base}/order", {})


def test_an_answer_that_ends_early_is_a_clear_failure(ca: CannedServer):
    ca.answer = one_after_another((200, {"Content-Length": "50", "Connection": "close"}, b"{"))
    with pytest.raises(acme.Unreachable):
        client(ca).post(f"{ca.base}/order", {})


def test_a_ca_with_an_unknown_root_is_refused_whatever_the_environment_says(
    ca: CannedServer, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(Failure, match="TLS: .*certificate verify failed") as refusal:
        acme.Client(f"{ca.base}/dir", KEY)
    assert "ca_bundle" in refusal.value.remedy
    monkeypatch.setenv("CURL_CA_BUNDLE", "")
    with pytest.raises(Failure, match="TLS: .*certificate verify failed"):
        acme.Client(f"{ca.base}/dir", KEY)


def test_the_ca_bundle_of_the_settings_wins_over_the_environments(
    ca: CannedServer, monkeypatch: pytest.MonkeyPatch
):
    import certifi

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    assert client(ca).directory["newOrder"] == f"{ca.base}/order"


def test_a_certificate_for_another_host_is_refused(ca: CannedServer, monkeypatch: pytest.MonkeyPatch):
    import socket

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    with pytest.raises(Failure, match="TLS: .*"):
        acme.Client(ca.base.replace("127.0.0.1", "other.test") + "/dir", KEY, None, ca.ca_bundle)


def test_polling_obeys_retry_after_and_ends_at_its_deadline(
    ca: CannedServer, monkeypatch: pytest.MonkeyPatch
):
    slept = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ca.answer = one_after_another(body({"status": "processing"}, **{"Retry-After": "3"}))
    with pytest.raises(Failure, match="waited 10 s .* is processing still"):
        client(ca).poll(f"{ca.base}/order", lambda o: o["status"] == "valid", "CA to issue", timeout=10)
    assert slept == [3, 3, 3, 1]


def test_polling_without_retry_after_begins_at_once_and_slows_down(
    ca: CannedServer, monkeypatch: pytest.MonkeyPatch
):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    ca.answer = one_after_another(*[body({"status": "processing"})] * 12, body({"status": "valid"}))
    answer = client(ca).poll(f"{ca.base}/order", lambda o: o["status"] == "valid", "CA to issue")
    assert answer.body["status"] == "valid"
    assert slept[0] == 0.25
    assert slept == sorted(slept)
    assert max(slept) == 5


def test_polling_survives_zero_and_absurd_retry_after(ca: CannedServer, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    replies = [body({"status": "x"}, **{"Retry-After": value}) for value in ("0", "999999999", "soon", "-5")]
    ca.answer = one_after_another(*replies, body({"status": "valid"}))
    client(ca).poll(f"{ca.base}/order", lambda o: o["status"] == "valid", "CA to issue", timeout=60)
    assert all(0 < seconds <= 60 for seconds in slept)


def test_links_are_found_by_relation_among_several(ca: CannedServer):
    link = '<https://ca/dir>;rel="index", <https://ca/alt/1>;rel="alternate", <https://ca/alt/2>; rel="alternate"'
    ca.answer = one_after_another(body({}, Link=link))
    answer = client(ca).post(f"{ca.base}/order", {})
    assert answer.links("alternate") == ["https://ca/alt/1", "https://ca/alt/2"]


def test_a_proxy_is_not_for_this_machine(ca: CannedServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert client(ca).directory["newOrder"] == f"{ca.base}/order"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "ftp://x", "", "https://[", "https://\x00", None, 5, "/order"]
)
def test_an_address_that_cannot_be_is_a_clear_failure(ca: CannedServer, url: Any):
    with pytest.raises(Failure):
        client(ca).post(url, {})


def test_a_directory_without_an_entry_says_which(ca: CannedServer):
    with pytest.raises(Failure, match="no revokeCert"):
        client(ca).url("revokeCert")


def test_retry_after_has_two_forms():
    later = datetime.now(timezone.utc) + timedelta(minutes=10)
    assert acme.retry_after("120") == 120
    assert 590 < (acme.retry_after(format_datetime(later, usegmt=True)) or 0) <= 600
    assert acme.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert acme.retry_after(None) is None


@given(st.text(max_size=40))
def test_any_retry_after_is_seconds_or_nothing(header: str):
    seconds = acme.retry_after(header)
    assert seconds is None or seconds >= 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "detail", "subproblems", "identifier", "value", "x"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(json_values)
def test_any_problem_document_can_be_told(document: Any):
    answer = acme.Answer("https://ca/x", 400, "Bad Request", {}, document)
    assert "400" in acme.Problem("POST https://ca/x", answer).what
