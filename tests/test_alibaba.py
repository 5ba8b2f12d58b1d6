"""common/alibaba.py: credentials, HTTPS always, retries, and errors without secrets; with the real SDK."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alibabacloud_credentials.provider import cli_profile
from alibabacloud_credentials.utils import auth_util
from aliyunsdkalidns.request.v20150109.AddDomainRecordRequest import AddDomainRecordRequest
from aliyunsdkalidns.request.v20150109.DescribeDomainsRequest import DescribeDomainsRequest
from aliyunsdkcdn.request.v20180510.SetCdnDomainSSLCertificateRequest import SetCdnDomainSSLCertificateRequest
from canned_server import CannedServer, Reply

from common import alibaba, config, show, x509
from common.failure import Failure, Usage
from lab import Lab

SECRET = "made/for+this=test only"
FINE: Reply = (200, {}, b'{"RequestId": "1", "RecordId": "7"}')


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CannedServer]:
    with CannedServer(tmp_path) as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long call() paused; without pausing."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def client(server: CannedServer, token: str | None = None) -> alibaba.Client:
    key = alibaba.Credentials("an-access-key-id", show.secret(SECRET), token and show.secret(token))
    return alibaba.Client(key, "cn-hangzhou", server.base.removeprefix("https://"), server.ca_bundle)


def error(code: str, status: int = 400, message: str = "no") -> Reply:
    return (
        status,
        {},
        json.dumps({"RequestId": "R-1", "HostId": "h", "Code": code, "Message": message}).encode(),
    )


def one_after_another(*replies: Reply) -> Callable[[str, dict[str, Any]], Reply]:
    left = list(replies)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]


def test_parameters_are_in_the_body_and_never_in_the_url(server: CannedServer):
    server.answer = one_after_another(FINE)
    client(server, token="sts-token-of-a-test").call(
        SetCdnDomainSSLCertificateRequest, {"SSLPri": "PEM", "SSLPub": "PUB"}
    )
    method, path, _, body = server.requests[-1]
    assert method == "POST"
    assert body == {"SSLPri": "PEM", "SSLPub": "PUB", "SecurityToken": "sts-token-of-a-test"}
    assert "Action=SetCdnDomainSSLCertificate" in path and "Signature=" in path
    assert not any(word in path for word in ("PEM", "PUB", "sts-token"))


def test_the_call_is_https_even_for_a_request_that_names_http_or_an_equal_string(server: CannedServer):
    # The SDK compares with "is": a string that is merely equal to "https" goes out in plain HTTP.
    class Careless(DescribeDomainsRequest):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.set_protocol_type("".join(["ht", "tps"]))

    class Plain(DescribeDomainsRequest):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.set_protocol_type("http")

    server.answer = one_after_another(FINE)
    for request_class in (Careless, Plain, DescribeDomainsRequest):
        assert client(server).call(request_class, {})["RequestId"] == "1"
    assert len(server.requests) == 3  # each arrived, at a listener that speaks nothing but TLS


def test_a_server_with_an_unknown_root_is_refused(server: CannedServer, monkeypatch, pauses: list[float]):
    key = alibaba.Credentials("an-access-key-id", SECRET)
    endpoint = server.base.removeprefix("https://")
    monkeypatch.setenv("ALIBABA_CLOUD_CA_BUNDLE", server.ca_bundle)
    with pytest.raises(alibaba.ApiError, match="NoTls on DescribeDomains: .*certificate verify failed"):
        alibaba.Client(key, "cn-hangzhou", endpoint).call(DescribeDomainsRequest, {})
    assert server.requests == [] and pauses == []


@pytest.mark.parametrize(
    "passing",
    [
        error("Throttling.User"),
        error("Throttling.Api"),
        error("ServiceBusy", 403),
        error("ServiceUnavailable", 503),
        error("InternalError", 500),
        (502, {}, b"<html>Bad Gateway</html>"),
    ],
)
def test_what_passes_by_itself_is_tried_again_with_growing_pauses(
    server: CannedServer, pauses, passing: Reply
):
    server.answer = one_after_another(passing, passing, FINE)
    assert client(server).call(DescribeDomainsRequest, {})["RequestId"] == "1"
    assert len(pauses) == 2
    nonces = {path.split("SignatureNonce=")[1].split("&")[0] for _, path, _, _ in server.requests}
    assert len(nonces) == 3  # each try is signed anew


def test_tries_are_bounded_and_the_last_error_is_told(server: CannedServer, pauses: list[float]):
    server.answer = one_after_another(error("Throttling.User"))
    with pytest.raises(
        alibaba.ApiError, match="Throttling.User on DescribeDomains: no .RequestId R-1."
    ) as refusal:
        client(server).call(DescribeDomainsRequest, {})
    assert len(server.requests) == alibaba.TRIES
    assert all(0 < pause <= 8 for pause in pauses)
    assert refusal.value.exit_code == 1


@pytest.mark.parametrize(
    "code", ["Forbidden.RAM", "InvalidAccessKeyId.NotFound", "DomainRecordDuplicate", "X.Y"]
)
def test_what_will_not_change_is_asked_once(server: CannedServer, pauses: list[float], code: str):
    server.answer = one_after_another(error(code))
    with pytest.raises(alibaba.ApiError) as refusal:
        client(server).call(AddDomainRecordRequest, {})
    assert refusal.value.code == code
    assert refusal.value.remedy
    assert len(server.requests) == 1 and pauses == []


def test_a_try_that_broke_off_is_remembered_and_one_that_was_refused_is_not(
    server: CannedServer, pauses: list[float]
):
    server.answer = one_after_another((500, {}, b""), error("DomainRecordDuplicate"))
    with pytest.raises(alibaba.ApiError) as after_break:
        client(server).call(AddDomainRecordRequest, {})
    server.answer = one_after_another(error("Throttling.User"), error("DomainRecordDuplicate"))
    with pytest.raises(alibaba.ApiError) as after_refusal:
        client(server).call(AddDomainRecordRequest, {})
    assert after_break.value.may_have_run is True
    assert after_refusal.value.may_have_run is False


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        # Each of these makes the SDK itself fail with an error of its own.
        (
            (400, {}, b'{"Code": "SignatureDoesNotMatch", "Message": "no colon here"}'),
            "SignatureDoesNotMatch",
        ),
        ((400, {}, b'{"Code": "X", "Message": "\xff\xfe"}'), "X"),
        ((400, {}, b"42"), "UnreadableAnswer"),
        ((400, {}, b"null"), "UnreadableAnswer"),
        ((400, {}, b'{"Code": {"a": 1}, "Message": ["b"]}'), "UnreadableAnswer"),
        ((400, {}, b'{"Code": "\xff\xfe", "Message": "\x80"}'), "UnreadableAnswer"),
        ((400, {}, b'{"Message": "no code"}'), "UnreadableAnswer"),
        ((400, {}, b""), "UnreadableAnswer"),
        ((200, {}, b'{"RequestId": "trunc'), "UnreadableAnswer"),
        ((200, {}, b"[1]"), "UnreadableAnswer"),
        ((400, {}, b"[" * 100_000), "UnreadableAnswer"),
    ],
)
def test_answers_that_trip_the_sdk_are_clear_errors(
    server: CannedServer, pauses: list[float], reply: Reply, code: str
):
    server.answer = one_after_another(reply)
    with pytest.raises(alibaba.ApiError) as refusal:
        client(server).call(DescribeDomainsRequest, {})
    assert refusal.value.code == code


def test_no_connection_is_a_clear_error_without_the_url(server: CannedServer, pauses: list[float], capsys):
    endpoint = "127.0.0.1:1"
    key = alibaba.Credentials("an-access-key-id", SECRET, "sts-token-of-a-test")
    pem = x509.traditional_private_key_pem(x509.new_private_key("ec256"))
    with pytest.raises(alibaba.ApiError) as refusal:
        alibaba.Client(key, "cn-hangzhou", endpoint).call(SetCdnDomainSSLCertificateRequest, {"SSLPri": pem})
    printed = capsys.readouterr()
    said = refusal.value.what + printed.err + printed.out
    assert (
        "NoAnswer on SetCdnDomainSSLCertificate: 127.0.0.1:1: [Errno 111] Connection refused" in said
        and "SetCdnDomainSSLCertificate" in said
    )
    assert not any(word in said for word in ("Signature=", "AccessKeyId=", pem.splitlines()[1], "sts-token"))
    assert (
        refusal.value.__cause__ is None
        and refusal.value.__suppress_context__
        or refusal.value.__context__ is None
    )


def test_what_signature_does_not_match_echoes_is_taken_out(lab: Lab, capsys: pytest.CaptureFixture[str]):
    key = alibaba.Credentials(lab.access_key.access_key_id, show.secret(SECRET))
    pem = x509.traditional_private_key_pem(x509.new_private_key("rsa2048"))
    wrong = alibaba.Client(key, "cn-hangzhou", lab.alibaba_endpoint, str(lab.ca_bundle))
    with pytest.raises(alibaba.ApiError, match="SignatureDoesNotMatch") as refusal:
        wrong.call(SetCdnDomainSSLCertificateRequest, {"DomainName": "www.example.test", "SSLPri": pem})
    said = refusal.value.what + capsys.readouterr().err
    assert "DomainName" in said  # it does echo the parameters
    assert not any(line[:20] in said for line in pem.splitlines()[1:-1])
    assert "access key secret" in refusal.value.remedy


def test_the_sdk_prints_nothing_even_when_told_to_debug(
    server, monkeypatch, pauses, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DEBUG", "sdk")
    server.answer = one_after_another(error("Throttling.User"), FINE)
    client(server).call(DescribeDomainsRequest, {})
    assert "Signature" not in capfd.readouterr().err


def test_sts_credentials_work(lab: Lab):
    sts = lab.cloud.ram.add_sts_token()
    key = alibaba.Credentials(sts.access_key_id, sts.access_key_secret, sts.security_token)
    with_token = alibaba.Client(key, "cn-hangzhou", lab.alibaba_endpoint, str(lab.ca_bundle))
    assert with_token.call(DescribeDomainsRequest, {})["TotalCount"] > 40


@pytest.mark.parametrize("sts", [False, True])
def test_what_was_resolved_is_used_whatever_aliyun_variables_say(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, sts: bool
):
    monkeypatch.setenv("ALIYUN_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("ALIYUN_ACCESS_KEY_SECRET", "somebody-elses")
    good = lab.cloud.ram.add_sts_token() if sts else lab.access_key
    key = alibaba.Credentials(good.access_key_id, good.access_key_secret, good.security_token)
    alibaba.Client(key, "cn-hangzhou", lab.alibaba_endpoint, str(lab.ca_bundle)).call(
        DescribeDomainsRequest, {}
    )
    assert lab.cloud.calls[-1].access_key_id == good.access_key_id


def test_neither_proxies_for_loopback_nor_netrc_are_used(server: CannedServer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.answer = one_after_another(FINE)
    client(server).call(DescribeDomainsRequest, {})
    assert "Authorization" not in server.requests[-1][2]


def test_an_answer_without_an_end_is_cut_off(server: CannedServer, pauses, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alibaba, "LARGEST_ANSWER", 100_000)
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": "", "Connection": "close"}
    server.answer = one_after_another((200, chunked, chunk * 3))
    with pytest.raises(alibaba.ApiError, match="NoAnswer"):
        client(server).call(DescribeDomainsRequest, {})


def settings(tmp_path: Path, text: str = "") -> config.Settings:
    (tmp_path / "acme.ini").write_text(text)
    return config.load(tmp_path / "acme.ini")


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN"):
        monkeypatch.delenv(f"ALIBABA_CLOUD_{name}", raising=False)
        # The library reads the environment once, when it is imported.
        monkeypatch.setattr(auth_util, f"environment_{name.lower()}", None)


def test_credentials_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET)
    monkeypatch.delenv("ALIBABA_CLOUD_SECURITY_TOKEN", raising=False)
    assert alibaba.credentials(settings(tmp_path)) == ("id-1", SECRET, None)
    monkeypatch.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "token-1")
    assert alibaba.credentials(settings(tmp_path)) == ("id-1", SECRET, "token-1")


@pytest.mark.parametrize("wrong", ["x\n", "\udcff", "pässwörd", "\u00a0x"])
@pytest.mark.parametrize("part", ["ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN"])
def test_credentials_with_a_character_that_cannot_be_are_refused_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wrong: str
):
    for name in ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN"):
        monkeypatch.setenv(f"ALIBABA_CLOUD_{name}", "made-for-a-test" + wrong * (name == part))
    with pytest.raises(Usage, match="a character that no access key has") as refusal:
        alibaba.credentials(settings(tmp_path))
    assert "made-for-a-test" not in refusal.value.what + refusal.value.remedy


def test_a_profile_of_a_credentials_file_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-of-the-environment")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "x-of-the-environment")
    profile = "[certificates]\ntype = access_key\naccess_key_id = id-2\naccess_key_secret = made-for-a-test\n"
    (tmp_path / "credentials.ini").write_text(profile)
    chosen = settings(tmp_path, "[alibaba]\nprofile = certificates\ncredentials_file = credentials.ini")
    assert alibaba.credentials(chosen) == ("id-2", "made-for-a-test", None)


def test_a_profile_of_the_aliyun_cli_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_credentials: None
):

    profile = {
        "name": "certificates",
        "mode": "AK",
        "access_key_id": "id-3",
        "access_key_secret": "made-for-a-test",
    }
    (tmp_path / ".aliyun").mkdir()
    (tmp_path / ".aliyun" / "config.json").write_text(
        json.dumps({"current": "certificates", "profiles": [profile]})
    )
    monkeypatch.setattr(cli_profile.ac, "HOME", str(tmp_path))
    monkeypatch.setattr(auth_util, "environment_cli_profile_disabled", "false")
    by_name = settings(tmp_path, "[alibaba]\nprofile = certificates")
    assert alibaba.credentials(by_name) == ("id-3", "made-for-a-test", None)
    assert alibaba.credentials(settings(tmp_path)) == ("id-3", "made-for-a-test", None)


def test_a_profile_that_is_not_there_is_named(tmp_path: Path):
    chosen = settings(tmp_path, "[alibaba]\nprofile = nobody\ncredentials_file = credentials.ini")
    with pytest.raises(Usage, match=r"\[alibaba\] profile: no usable profile nobody in .*credentials\.ini"):
        alibaba.credentials(chosen)


def test_no_credentials_at_all_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_credentials: None
):

    monkeypatch.setattr(auth_util, "environment_ecs_metadata_disabled", "true")
    monkeypatch.setattr(auth_util, "environment_cli_profile_disabled", "true")
    with pytest.raises(Usage, match="no Alibaba Cloud credentials") as refusal:
        alibaba.credentials(settings(tmp_path))
    assert "ALIBABA_CLOUD_ACCESS_KEY_ID" in refusal.value.remedy


def test_the_endpoint_is_always_named_so_that_no_location_service_is_asked(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET)
    chosen = settings(tmp_path, "[alibaba]\nregion = cn-heyuan")
    assert alibaba.connect(chosen, "alidns").endpoint == "alidns.aliyuncs.com"
    assert alibaba.connect(chosen, "cdn").endpoint == "cdn.aliyuncs.com"
    assert alibaba.connect(chosen, "apigateway").endpoint == "apigateway.cn-heyuan.aliyuncs.com"


def test_a_ca_bundle_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(Failure, match=r"\[alibaba\] ca_bundle: there is no file"):
        alibaba.connect(settings(tmp_path, "[alibaba]\nca_bundle = none.pem"), "cdn")


def test_the_date_is_that_of_the_answer_to_the_same_thread():
    client = alibaba.Client(alibaba.Credentials("id", "secret"), "cn-hangzhou", "127.0.0.1:9")
    assert client.date() is None

    def answered(date: str) -> None:
        client._keep_answer(
            SimpleNamespace(headers={"Date": date}, status_code=200, iter_content=lambda _: [])
        )

    answered("Tue, 24 Nov 2026 10:00:00 GMT")
    other = threading.Thread(target=answered, args=["Tue, 24 Nov 2026 11:00:00 GMT"])
    other.start()
    other.join()
    assert client.date() == "Tue, 24 Nov 2026 10:00:00 GMT"
