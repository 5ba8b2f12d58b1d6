"""common/show.py: what is printed, what is traced, and that no secret leaves through it."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from common import show, x509
from common.failure import Failure

SECRET = "not/a+real=secret, made for this test"


@pytest.fixture(autouse=True)
def fresh_output() -> Iterator[None]:
    yield
    show._Output.secrets = ()
    show.start("", quiet=False, trace=None)


def exchange(sent: dict, received: dict, **more: object) -> None:
    show.exchange("POST", "https://ca.example/order", sent, "200 OK", received, 0.1, "acme", **more)


def test_an_exchange_looks_as_in_the_rfc(capsys: pytest.CaptureFixture[str]):
    show.start("04_new_order")
    show.step("newOrder", "RFC 8555 section 7.4")
    exchange(
        {"protected": {"alg": "ES256"}, "payload": {}}, {"Location": "https://ca.example/1", "body": {"a": 1}}
    )
    assert capsys.readouterr().err == (
        "\n04  newOrder                                                RFC 8555 section 7.4\n"
        "--> POST https://ca.example/order\n"
        '    protected    {"alg": "ES256"}\n'
        "    payload      {}\n"
        "<-- 200 OK\n"
        "    Location     https://ca.example/1\n"
        '    body         {"a": 1}\n'
    )


def test_a_brief_exchange_is_one_line(capsys: pytest.CaptureFixture[str]):
    exchange({"payload": {}}, {"body": {}}, brief=True)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sentence_is_shown_whole(capsys: pytest.CaptureFixture[str]):
    detail = (
        "The key authorization file from the server did not match this challenge: expected one, got another"
    )
    exchange({}, {"body": {"detail": detail, "pem": "-----BEGIN A THING-----" + "A" * 500}})
    printed = capsys.readouterr().err
    assert detail in printed
    assert "A" * 100 not in printed


def test_long_text_is_shortened_with_its_length_and_long_lists_with_their_count(
    capsys: pytest.CaptureFixture[str],
):
    exchange({"payload": {"csr": "A" * 500, "names": [f"{n}.example" for n in range(40)]}}, {})
    printed = capsys.readouterr().err
    assert "(500 characters)" in printed
    assert "A" * 100 not in printed
    assert "… and 34 more" in printed


def test_narration_goes_to_stderr_and_only_the_result_to_stdout(capsys: pytest.CaptureFixture[str]):
    show.say("a word")
    show.wrote(Path("state/x"))
    show.next_step("02")
    show.result("the result")
    printed = capsys.readouterr()
    assert printed.out == "the result\n"
    assert "a word" in printed.err


def test_quiet_leaves_result_notes_and_errors(capsys: pytest.CaptureFixture[str]):
    show.start("04_new_order", quiet=True)
    show.step("newOrder")
    exchange({}, {})
    show.result("the result")
    show.warn("a warning")
    show.failure(Failure("it broke", "mend it"))
    printed = capsys.readouterr()
    assert printed.out == "the result\n"
    assert printed.err == "note: a warning\nerror: it broke\nwhat to do: mend it\n"


def test_the_trace_holds_every_exchange_even_when_quiet_or_brief(tmp_path: Path):
    show.start("04_new_order", quiet=True, trace=tmp_path / "state" / "trace.jsonl")
    exchange({"payload": {"n": 1}}, {"body": {"n": 2}}, brief=True)
    show.failure(Failure("it broke", "mend it"))
    first, second = [
        json.loads(line) for line in (tmp_path / "state" / "trace.jsonl").read_text().splitlines()
    ]
    assert first["script"] == "04_new_order"
    assert (first["kind"], first["method"], first["url"]) == ("acme", "POST", "https://ca.example/order")
    assert first["sent"] == {"payload": {"n": 1}} and first["received"] == {"body": {"n": 2}}
    assert second["what"] == "it broke"


def test_the_trace_says_which_run_and_which_step_a_record_belongs_to(tmp_path: Path):
    show.start("04_new_order", trace=tmp_path / "trace.jsonl")
    show.step("newOrder", "RFC 8555 section 7.4")
    exchange({}, {})
    show.wrote(tmp_path / "pending" / "order.json")
    with show.part("05_dns_challenge"):
        exchange({}, {})
    first, second, third = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert (first["step"], first["source"]) == ("newOrder", "RFC 8555 section 7.4")
    assert (second["kind"], second["file"]) == ("wrote", "pending/order.json")
    assert (third["script"], third["step"]) == ("05_dns_challenge", "")
    assert {first["run"], second["run"], third["run"]} == {os.getpid()}


def test_what_is_traced_alone_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    show.start("05_dns_challenge", trace=tmp_path / "trace.jsonl")
    show.trace(
        "dns", 0.1, url="dns:x?type=TXT", sent={"name": "x"}, status="NOERROR", received={"answer": []}
    )
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "trace.jsonl").read_text())["url"] == "dns:x?type=TXT"


FORMS = {
    "plain": SECRET,
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64url": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    "hex": SECRET.encode().hex(),
    "percent": quote(SECRET, safe=""),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_registered_secret_appears_in_no_form_and_nowhere(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    show.start("05_dns_challenge", trace=tmp_path / "trace.jsonl")
    assert show.secret(SECRET) == SECRET
    show.say(f"say {form}")
    show.warn(f"warn {form}")
    show.ask(f"ask {form}")
    show.facts(fact=form)
    show.result(f"result {form}")
    show.failure(Failure(f"failure {form}", f"remedy {form}"))
    show.exchange("POST", f"https://x/?q={form}", {"a": {"b": [form]}}, form, {"body": form}, 0, "alibaba")
    show.trace("dns", url=f"dns:{form}", sent={"name": form}, status=form, received={"answer": [form]})
    show.step(f"step {form}", f"source {form}")
    show.wrote(tmp_path / quote(form, safe=""))
    with show.waiting(10) as waiting:
        waiting.update(form)
    printed = capsys.readouterr()
    everything = printed.out + printed.err + (tmp_path / "trace.jsonl").read_text()
    assert form not in everything
    assert "failure" in everything and show.HIDDEN in everything


@pytest.mark.parametrize(
    "member", ["SSLPri", "CertificatePrivateKey", "SecurityToken", "Signature", "AccessKeySecret", "Password"]
)
def test_a_secret_member_is_hidden_without_being_registered(
    member: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    show.start("07_install_cdn", trace=tmp_path / "trace.jsonl")
    exchange(
        {"parameters": {member: "hush-hush"}},
        {"body": {"Message": f"POST&%2F&A%3Db%26{member}%3Dhush-hush%26C%3Dd"}},
    )
    show.failure(Failure(f"https://x/?{member}=hush-hush&Action=y", ""))
    everything = capsys.readouterr().err + (tmp_path / "trace.jsonl").read_text()
    assert "hush-hush" not in everything
    assert "Action=y" in everything


@pytest.mark.parametrize("traditional", [True, False])
@pytest.mark.parametrize("key_type", ["ec256", "rsa2048"])
def test_a_private_key_is_hidden_whole_cut_off_or_percent_encoded(
    key_type: str, traditional: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    show.start("07_install_cdn", trace=tmp_path / "trace.jsonl")
    key = x509.new_private_key(key_type)
    pem = x509.traditional_private_key_pem(key) if traditional else x509.private_key_pem(key).decode()
    for text in (pem, pem[:-60], quote(pem), quote(quote(pem)), pem.replace("\n", "\\n")):
        show.say(f"before {text}")
        show.failure(Failure(text, text))
        exchange({"x": text}, {"y": [text]})
    everything = capsys.readouterr().err + (tmp_path / "trace.jsonl").read_text()
    for line in pem.splitlines()[1:-1]:
        assert line[:30] not in everything
        assert quote(line)[:30] not in everything


def test_a_jws_signature_is_shown_for_it_is_no_secret(capsys: pytest.CaptureFixture[str]):
    exchange({"signature": "c2lnbmF0dXJl"}, {})
    assert "c2lnbmF0dXJl" in capsys.readouterr().err


def test_waiting_says_each_reason_once_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    with show.waiting(30) as waiting:
        for reason in ("a", "a", "b", "b"):
            waiting.update(reason)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["waiting for a", "waiting for b"]


def test_a_servers_words_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]):
    show.warn("before\x1b[2J\x1b]0;title\x07\x9b31m\u202eafter\r\nnext")
    exchange({}, {"body": "\x1b[31m", "json": {"a": "\x1b[31m"}})
    printed = capsys.readouterr().err
    assert not set(printed) & set("\x1b\x07\x9b\u202e\r")
    assert "before" in printed and "after\nnext" in printed


def test_deep_and_odd_values_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    show.start("04_new_order", trace=tmp_path / "trace.jsonl")
    deep: list = []
    for _ in range(900):
        deep = [deep]
    exchange(
        {"payload": deep}, {"body": {"a": deep, "blank": " \n" * 200, "none": None, "list": [], "n": 1.5}}
    )
    assert "deeper than" in capsys.readouterr().err
    assert json.loads((tmp_path / "trace.jsonl").read_text())["received"]["body"]["n"] == 1.5
