"""The emulator's front: the RPC signature, the common errors, formats, credentials, and hostile input."""

import http.client
import json
import socket
import ssl
import threading
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlencode

import pytest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from emulator_client import common_parameters, make_tls_files, running_emulator, sign, timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.alibaba import ApiError, Cloud, Gateway, gateway


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def emulator(tls_files):
    with running_emulator(*tls_files) as running:
        yield running


def code_of(response):
    return response.status_code, response.json()["Code"]


# The signature.


# The parameters of the example on Alibaba's page "Request signatures", key "testid", secret "testsecret".
DOCUMENTED = {
    "Format": "XML",
    "AccessKeyId": "testid",
    "Action": "DescribeRegions",
    "SignatureMethod": "HMAC-SHA1",
    "SignatureNonce": "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf",
    "Version": "2014-05-26",
    "SignatureVersion": "1.0",
}


@pytest.mark.parametrize(
    ("timestamp_name", "expected"),
    [("Timestamp", "OLeaidS1JvxuMvnyHOwuJ+uX5qY="), ("TimeStamp", "CT9X0VtwR86fNWSnsc6v8YGOjuE=")],
)
def test_signature_is_the_one_of_alibabas_documented_example(timestamp_name, expected):
    text = gateway.string_to_sign("GET", {**DOCUMENTED, timestamp_name: "2016-02-23T12:46:24Z"})

    assert text.startswith("GET&%2F&AccessKeyId%3Dtestid%26Action%3DDescribeRegions%26Format%3DXML")
    assert text.endswith(f"{timestamp_name}%3D2016-02-23T12%253A46%253A24Z%26Version%3D2014-05-26")
    assert gateway.signature(text, "testsecret") == expected


def test_percent_encoding_leaves_only_rfc_3986_unreserved_characters():
    assert gateway.percent_encode("Az09-_.~") == "Az09-_.~"
    assert gateway.percent_encode(" *+/=&%'()!é") == "%20%2A%2B%2F%3D%26%25%27%28%29%21%C3%A9"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("value", ["plain", "a b", "a+b", "*~'()!", "a=b&c%20d", '"quoted"'])
def test_signed_value_of_any_characters_arrives_as_it_was_sent(emulator, method, value):
    form = {"Value": value} if method == "POST" else {}
    query = {} if method == "POST" else {"Value": value}
    response = emulator.call(
        "AddDomainRecord", method=method, form=form, DomainName="example.test", RR="@", Type="TXT", **query
    )

    assert response.status_code == 200
    assert emulator.cloud.dns.records("example.test")[0].value == value


def test_parameter_in_the_form_is_as_good_as_in_the_query(emulator):
    form = common_parameters(emulator.key, "DescribeDomains")
    form["Signature"] = sign("POST", form, emulator.key.access_key_secret)

    response = emulator.send(body=urlencode(form), method="POST")

    assert response.json()["TotalCount"] == 1


def test_wrong_secret_is_refused_with_the_servers_string_to_sign(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    query = urlencode({**parameters, "Signature": sign("GET", parameters, "not the secret")})

    response = emulator.send(query)

    assert code_of(response) == (400, "SignatureDoesNotMatch")
    assert response.json()["Message"].endswith(
        "server string to sign is:" + gateway.string_to_sign("GET", parameters)
    )


def test_sdk_sees_by_the_string_to_sign_that_only_its_secret_is_wrong(emulator):
    other = emulator.cloud.ram.add_access_key()
    forged = type(other)(emulator.key.access_key_id, other.access_key_secret)

    with pytest.raises(ServerException) as caught:
        emulator.sdk("alidns", "DescribeDomains", key=forged)

    # The SDK names it so when both strings to sign agree.
    assert caught.value.error_code == "InvalidAccessKeySecret"


def test_tampered_query_is_refused(emulator):
    parameters = common_parameters(emulator.key, "AddDomainRecord")
    parameters |= {"DomainName": "example.test", "RR": "a", "Type": "TXT", "Value": "mine"}
    signature = sign("GET", parameters, emulator.key.access_key_secret)

    response = emulator.send(urlencode({**parameters, "Value": "other", "Signature": signature}))

    assert code_of(response) == (400, "SignatureDoesNotMatch")
    assert emulator.cloud.dns.records("example.test") == ()


def test_added_parameter_is_refused(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    signature = sign("GET", parameters, emulator.key.access_key_secret)

    response = emulator.send(urlencode({**parameters, "Signature": signature, "KeyWord": "x"}))

    assert code_of(response) == (400, "SignatureDoesNotMatch")


def test_tampered_body_is_refused(emulator):
    parameters = common_parameters(emulator.key, "AddDomainRecord")
    parameters |= {"DomainName": "example.test", "RR": "a", "Type": "TXT"}
    signature = sign("POST", parameters | {"Value": "mine"}, emulator.key.access_key_secret)

    response = emulator.send(urlencode({**parameters, "Signature": signature}), "Value=other", "POST")

    assert code_of(response) == (400, "SignatureDoesNotMatch")
    assert emulator.cloud.dns.records("example.test") == ()


def test_signature_of_another_http_method_is_refused(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    parameters["Signature"] = sign("GET", parameters, emulator.key.access_key_secret)

    assert code_of(emulator.send(body=urlencode(parameters), method="POST")) == (400, "SignatureDoesNotMatch")


# Nonce, clock, and the other common parameters.


def test_replayed_request_is_refused(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    query = urlencode({**parameters, "Signature": sign("GET", parameters, emulator.key.access_key_secret)})

    assert emulator.send(query).status_code == 200
    assert code_of(emulator.send(query)) == (400, "SignatureNonceUsed")


def test_nonce_of_a_request_with_a_bad_signature_is_not_used_up(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    good = sign("GET", parameters, emulator.key.access_key_secret)

    assert code_of(emulator.send(urlencode({**parameters, "Signature": "AAAA"})))[0] == 400
    assert emulator.send(urlencode({**parameters, "Signature": good})).status_code == 200


def test_two_keys_may_use_the_same_nonce(emulator):
    other = emulator.cloud.ram.add_access_key()

    assert emulator.call("DescribeDomains", SignatureNonce="one").status_code == 200
    assert emulator.call("DescribeDomains", key=other, SignatureNonce="one").status_code == 200


@pytest.mark.parametrize("seconds", [-14 * 60, 14 * 60])
def test_clock_within_fifteen_minutes_is_accepted(emulator, seconds):
    assert emulator.call("DescribeDomains", Timestamp=timestamp(seconds)).status_code == 200


@pytest.mark.parametrize("seconds", [-16 * 60, 16 * 60, 8 * 3600])
def test_clock_beyond_fifteen_minutes_is_refused(emulator, seconds):
    response = emulator.call("DescribeDomains", Timestamp=timestamp(seconds))

    assert code_of(response) == (400, "InvalidTimeStamp.Expired")
    assert response.json()["Message"] == "Specified time stamp or date value is expired."


@pytest.mark.parametrize(
    "text",
    ["now", "2026-11-24", "2026-11-24T08:00:00", "2026-11-24 08:00:00Z", "2026-13-24T08:00:00Z", "1795509058",
     "2026-11-24T08:00:00+00:00", "2026-11-24T08:00:00Z\n", "٢٠٢٦-11-24T08:00:00Z"],
)  # fmt: skip
def test_timestamp_of_another_form_is_refused(emulator, text):
    assert code_of(emulator.call("DescribeDomains", Timestamp=text)) == (400, "InvalidTimeStamp.Format")


@pytest.mark.parametrize(
    "name",
    ["Version", "Action", "AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion",
     "SignatureNonce", "Timestamp"],
)  # fmt: skip
def test_missing_common_parameter_is_named(emulator, name):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    parameters["Signature"] = "AAAA"
    del parameters[name]

    response = emulator.send(urlencode(parameters))

    assert code_of(response) == (400, f"Missing{name}")
    assert response.json()["Message"] == f"{name} is mandatory for this action."


def test_empty_common_parameter_counts_as_missing(emulator):
    assert code_of(emulator.call("DescribeDomains", SignatureNonce="")) == (400, "MissingSignatureNonce")


def test_unknown_version_is_refused_as_the_gateway_does(emulator):
    response = emulator.call("DescribeDomains", Version="2014-01-01")

    assert code_of(response) == (400, "InvalidVersion")
    assert response.json()["Message"] == "Specified parameter Version is not valid."


def test_unknown_action_is_refused_as_the_gateway_does(emulator):
    response = emulator.call("DescribeUnicorns")

    assert code_of(response) == (404, "InvalidAction.NotFound")
    assert response.json()["Message"] == "Specified api is not found, please check your url and method."


def test_action_of_another_product_is_not_found(emulator):
    assert code_of(emulator.call("DescribeApiGroups")) == (404, "InvalidAction.NotFound")


def test_other_path_is_not_found(emulator):
    connection = http.client.HTTPSConnection(
        "127.0.0.1", emulator.gateway.port, context=ssl.create_default_context(cafile=emulator.ca_file)
    )
    connection.request("GET", "/other")

    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize(("name", "value"), [("SignatureMethod", "HMAC-SHA256"), ("SignatureVersion", "2.0")])
def test_other_signature_method_or_version_is_refused(emulator, name, value):
    assert code_of(emulator.call("DescribeDomains", **{name: value})) == (400, f"Invalid{name}")


def test_unknown_format_is_refused(emulator):
    response = emulator.call("DescribeDomains", Format="YAML")

    assert response.status_code == 400
    assert ElementTree.fromstring(response.content).findtext("Code") == "InvalidParameter.Format"


# Credentials.


def test_unknown_access_key_is_not_found(emulator):
    unknown = type(emulator.key)("LTAInobody", "secret")

    response = emulator.call("DescribeDomains", key=unknown)

    assert code_of(response) == (404, "InvalidAccessKeyId.NotFound")
    assert response.json()["Message"] == "Specified access key is not found."


def test_disabled_access_key_is_refused(emulator):
    emulator.cloud.ram.disable_access_key(emulator.key.access_key_id)

    assert code_of(emulator.call("DescribeDomains")) == (400, "InvalidAccessKeyId.Inactive")


def test_sts_token_works_with_the_sdk(emulator):
    key = emulator.cloud.ram.add_sts_token()

    assert key.access_key_id.startswith("STS.")
    assert emulator.sdk("alidns", "DescribeDomains", key=key)["TotalCount"] == 1


def test_temporary_key_without_its_token_is_refused(emulator):
    key = emulator.cloud.ram.add_sts_token()
    bare = type(key)(key.access_key_id, key.access_key_secret)

    assert code_of(emulator.call("DescribeDomains", key=bare)) == (400, "MissingSecurityToken")


def test_token_of_another_key_is_refused(emulator):
    key, other = emulator.cloud.ram.add_sts_token(), emulator.cloud.ram.add_sts_token()
    mixed = type(key)(key.access_key_id, key.access_key_secret, other.security_token)

    response = emulator.call("DescribeDomains", key=mixed)

    assert code_of(response) == (400, "InvalidSecurityToken.MismatchWithAccessKey")


def test_token_nobody_issued_is_refused(emulator):
    key = emulator.cloud.ram.add_sts_token()
    forged = type(key)(key.access_key_id, key.access_key_secret, "CAISforged")

    assert code_of(emulator.call("DescribeDomains", key=forged)) == (400, "InvalidSecurityToken.Malformed")


def test_expired_token_is_refused(emulator):
    key = emulator.cloud.ram.add_sts_token(lifetime=-1)

    assert code_of(emulator.call("DescribeDomains", key=key)) == (400, "InvalidSecurityToken.Expired")


def test_limited_key_may_do_what_it_is_granted_and_nothing_else(emulator):
    key = emulator.cloud.ram.add_access_key(actions={"alidns:DescribeDomains", "cdn:*"})

    assert emulator.sdk("alidns", "DescribeDomains", key=key)["TotalCount"] == 1
    assert emulator.sdk("cdn", "DescribeUserDomains", key=key)["TotalCount"] == 0
    with pytest.raises(ServerException) as caught:
        emulator.sdk("alidns", "DescribeDomainInfo", key=key, DomainName="example.test")
    assert (caught.value.http_status, caught.value.error_code) == (400, "Forbidden.RAM")
    with pytest.raises(ServerException) as caught:
        emulator.sdk("cloudapi", "DescribeApiGroups", key=key)
    assert (caught.value.http_status, caught.value.error_code) == (403, "Forbidden.RAM")


def test_forbidden_answer_says_which_action_is_not_granted(emulator):
    key = emulator.cloud.ram.add_access_key(actions=set())

    detail = emulator.call("DescribeDomains", key=key).json()["AccessDeniedDetail"]

    assert detail["AuthAction"] == "alidns:DescribeDomains"


def test_secrets_are_not_in_the_repr_of_a_key(emulator):
    key = emulator.cloud.ram.add_sts_token()

    assert key.access_key_secret not in repr(key)
    assert key.security_token not in repr(key)


# Answers.


def test_error_body_has_the_five_fields_of_the_service(emulator):
    body = emulator.call("DescribeUnicorns").json()

    assert list(body) == ["RequestId", "HostId", "Code", "Message", "Recommend"]
    assert body["HostId"] == "alidns.aliyuncs.com"
    assert body["RequestId"] in body["Recommend"]
    assert body["Recommend"].startswith("https://api.aliyun.com/troubleshoot?q=InvalidAction.NotFound&")


@pytest.mark.parametrize(
    ("product", "action", "parameters", "host"),
    [
        ("alidns", "DescribeDomainInfo", {"DomainName": "no.test"}, "alidns.aliyuncs.com"),
        ("cdn", "DescribeCdnDomainDetail", {"DomainName": "no.test"}, "cdn.aliyuncs.com"),
        ("cloudapi", "DescribeApiGroup", {"GroupId": "no"}, "apigateway.cn-hangzhou.aliyuncs.com"),
        (
            "cloudapi",
            "DescribeApiGroup",
            {"GroupId": "no", "RegionId": "eu-central-1"},
            "apigateway.eu-central-1.aliyuncs.com",
        ),
    ],
)
def test_host_id_is_the_products_own(emulator, product, action, parameters, host):
    assert emulator.call(action, product=product, **parameters).json()["HostId"] == host


def test_answer_without_a_format_is_xml_named_after_the_action(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    del parameters["Format"]
    parameters["Signature"] = sign("GET", parameters, emulator.key.access_key_secret)

    response = emulator.send(urlencode(parameters))
    root = ElementTree.fromstring(response.content)

    assert response.headers["Content-Type"] == "text/xml;charset=utf-8"
    assert root.tag == "DescribeDomainsResponse"
    assert root.findtext("Domains/Domain/DomainName") == "example.test"
    assert root.findtext("RequestId") == response.headers["x-acs-request-id"]
    assert [server.text for server in root.iter("DnsServer")] == ["ns1.lab.test", "ns2.lab.test"]


@pytest.mark.parametrize("spelling", ["JSON", "json", "Json"])
def test_json_is_answered_however_it_is_spelt(emulator, spelling):
    response = emulator.call("DescribeDomains", Format=spelling)

    assert response.headers["Content-Type"] == "application/json;charset=utf-8"
    assert response.json()["TotalCount"] == 1


def test_error_in_xml_has_the_root_error(emulator):
    response = emulator.call("DescribeUnicorns", Format="XML")
    root = ElementTree.fromstring(response.content)

    assert (response.status_code, root.tag) == (404, "Error")
    assert [child.tag for child in root] == ["RequestId", "HostId", "Code", "Message", "Recommend"]


def test_xml_answer_is_well_formed_whatever_a_value_holds(emulator):
    value = '</Value><Evil attribute="\'">&amp;]]>'
    emulator.call("AddDomainRecord", DomainName="example.test", RR="@", Type="TXT", Value=value)

    response = emulator.call("DescribeDomainRecords", Format="XML", DomainName="example.test")

    assert ElementTree.fromstring(response.content).findtext("DomainRecords/Record/Value") == value


def test_every_answer_carries_the_date_and_no_server_software(emulator):
    for response in (emulator.call("DescribeDomains"), emulator.send(), emulator.send(method="PUT")):
        assert parsedate_to_datetime(response.headers["Date"]).tzinfo is not None
        assert "Server" not in response.headers
        assert "ython" not in str(response.headers)


def test_connection_is_kept_alive(emulator):
    connection = http.client.HTTPSConnection(
        "127.0.0.1", emulator.gateway.port, context=ssl.create_default_context(cafile=emulator.ca_file)
    )
    connection.connect()
    local = connection.sock.getsockname()
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"<?xml")
        assert connection.sock.getsockname() == local
    connection.close()


# The log of calls.


def test_calls_are_logged_with_what_became_of_them(emulator):
    seen = []
    emulator.cloud.on_call = seen.append
    emulator.call("DescribeDomains", method="POST")
    emulator.call("DescribeUnicorns")

    first, second = emulator.cloud.calls
    assert (first.product, first.action, first.http_method) == ("Alidns", "DescribeDomains", "POST")
    assert (first.status, first.code, first.access_key_id) == (200, "", emulator.key.access_key_id)
    assert "Action=DescribeDomains" in first.query
    assert (second.status, second.code) == (404, "InvalidAction.NotFound")
    assert seen == [first, second]


def test_logged_parameters_hold_no_key_certificate_token_or_signature(emulator):
    key = emulator.cloud.ram.add_sts_token()
    secret_form = {"SSLPub": "CERTIFICATE-TEXT", "SSLPri": "KEY-TEXT", "DomainName": "www.example.test"}
    emulator.call("SetCdnDomainSSLCertificate", key=key, method="POST", product="cdn", form=secret_form)

    (call,) = emulator.cloud.calls
    assert "-TEXT" not in repr(call)
    assert key.security_token not in repr(call)
    assert call.parameters["SSLPri"] == "(8 characters)"
    assert call.parameters["DomainName"] == "www.example.test"


# Faults on demand.


def test_fault_is_answered_as_often_as_asked_and_changes_nothing(emulator):
    busy = ApiError("Throttling.User", "Request was denied due to user flow control.")
    emulator.cloud.fail_next("AddDomainRecord", busy, times=2)
    record = {"DomainName": "example.test", "RR": "a", "Type": "TXT", "Value": "v"}

    codes = [emulator.call("AddDomainRecord", **record).json().get("Code") for _ in range(3)]

    assert codes == ["Throttling.User", "Throttling.User", None]
    assert len(emulator.cloud.dns.records("example.test")) == 1


def test_lost_answer_closes_the_connection_after_the_action_was_done(emulator):
    emulator.cloud.lose_next_answer("AddDomainRecord")
    record = {"DomainName": "example.test", "RR": "a", "Type": "TXT", "Value": "v"}

    with pytest.raises(Exception, match="without response"):
        emulator.call("AddDomainRecord", **record)

    assert len(emulator.cloud.dns.records("example.test")) == 1
    assert code_of(emulator.call("AddDomainRecord", **record)) == (400, "DomainRecordDuplicate")


# Many clients at once.


def test_two_hundred_clients_at_once_are_all_answered(emulator):
    start = threading.Barrier(200)

    def add(number):
        start.wait(timeout=60)
        return emulator.call(
            "AddDomainRecord", DomainName="example.test", RR=f"r{number}", Type="TXT", Value="v"
        ).status_code

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(add, range(200)))

    assert statuses == [200] * 200
    assert len({record.rr for record in emulator.cloud.dns.records("example.test")}) == 200


def test_same_record_added_by_many_at_once_is_there_once(emulator):
    record = {"DomainName": "example.test", "RR": "same", "Type": "TXT", "Value": "v"}

    with ThreadPoolExecutor(20) as pool:
        codes = list(
            pool.map(lambda _: emulator.call("AddDomainRecord", **record).json().get("Code"), range(20))
        )

    assert sorted(codes, key=str) == ["DomainRecordDuplicate"] * 19 + [None]


def test_same_nonce_sent_by_many_at_once_is_accepted_once(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    query = urlencode({**parameters, "Signature": sign("GET", parameters, emulator.key.access_key_secret)})

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: emulator.send(query).status_code, range(20)))

    assert sorted(statuses) == [200] + [400] * 19


def test_client_that_never_finishes_its_handshake_holds_up_no_other(emulator):
    with socket.create_connection(("127.0.0.1", emulator.gateway.port)) as silent:
        assert emulator.call("DescribeDomains").status_code == 200
        assert silent.fileno() > 0


# Hostile input: an error answer or a closed connection, never a success, never a traceback.


def raw(emulator, request, receive=True):
    """Bytes sent over TLS as they are, and all that comes back."""
    context = ssl.create_default_context(cafile=emulator.ca_file)
    with (
        socket.create_connection(("127.0.0.1", emulator.gateway.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(request)
        answer = b""
        while receive and (chunk := connection.recv(65536)):
            answer += chunk
    return answer


HEAD = b"POST / HTTP/1.1\r\nHost: alidns.aliyuncs.com\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD + b"Content-Length: 2000000\r\n\r\n", 413),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: +5\r\n\r\nabcde", 400),
        (HEAD + b"Content-Length: 5 5\r\n\r\nabcde", 400),
        (HEAD + b"Content-Length: 0x5\r\n\r\nabcde", 400),
        (HEAD + b"Content-Length: \r\n\r\n", 400),
        (HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\na", 411),
        (HEAD + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 415),
        (HEAD + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1\r\n\r\na", 415),
        (HEAD + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc", 400),
        (HEAD + b"Content-Length: 7\r\n\r\na=%FF%F", 400),
        (HEAD + b"Content-Length: 7\r\n\r\na=1&a=2", 400),
        (HEAD + b"Content-Length: 8000\r\n\r\n" + b"a=1&" * 2000, 400),
        (b"GET /?%01=1&%01=2 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /?a=%C3%28 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /?" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"one two three four\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\n\r\n", 403),
        (b"DELETE / HTTP/1.1\r\n\r\n", 403),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 403),
        (b"BREW /?Action=DescribeDomains HTTP/1.1\r\n\r\n", 403),
    ],
)
def test_malformed_request_gets_an_error_answer(emulator, capfd, caplog, request_bytes, status):
    answer = raw(emulator, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")

    # It was refused for what it is, not because it lacks parameters.
    assert not ElementTree.fromstring(body).findtext("Code").startswith("Missing") or status == 411
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nDate: " in head
    assert emulator.call("DescribeDomains").status_code == 200
    assert capfd.readouterr().err == ""
    assert caplog.records == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        HEAD + b"Content-Length: 50\r\n\r\nshort",
        b"\x00" * 100,
    ],
)
def test_client_that_goes_away_in_the_middle_leaves_no_trace(emulator, capfd, caplog, request_bytes):
    raw(emulator, request_bytes, receive=False)

    assert emulator.call("DescribeDomains").status_code == 200
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_plain_http_on_the_tls_port_is_not_answered(emulator, capfd, caplog):
    with socket.create_connection(("127.0.0.1", emulator.gateway.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            answer = connection.recv(1000)
        except ConnectionError:
            answer = b""

    assert not answer.startswith(b"HTTP")
    assert emulator.call("DescribeDomains").status_code == 200
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_slow_client_is_cut_off(tls_files, monkeypatch):
    monkeypatch.setattr(gateway.Handler, "timeout", 0.3)
    with running_emulator(*tls_files) as emulator:
        answer = raw(emulator, HEAD + b"Content-Length: 50\r\n\r\nhalf")

    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("position", ["query", "form", "both"])
def test_signed_request_with_a_duplicated_parameter_is_refused(emulator, position):
    parameters = common_parameters(emulator.key, "DescribeDomains") | {"KeyWord": "x"}
    parameters["Signature"] = sign("POST", parameters, emulator.key.access_key_secret)
    text, extra = urlencode(parameters), "KeyWord=x"
    query, form = {"query": (f"{text}&{extra}", ""), "form": ("", f"{text}&{extra}"), "both": (text, extra)}[
        position
    ]

    assert code_of(emulator.send(query, form or None, "POST"))[0] == 400


def test_signed_request_with_a_body_of_another_type_is_refused(emulator):
    parameters = common_parameters(emulator.key, "DescribeDomains")
    parameters["Signature"] = sign("POST", parameters, emulator.key.access_key_secret)
    headers = {"Content-Type": "application/json"}

    response = emulator.send(urlencode(parameters), "{}", "POST", headers=headers)

    assert response.status_code == 415


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["GET", "POST"]),
    st.dictionaries(
        st.sampled_from([*DOCUMENTED, "Timestamp", "SecurityToken", "Signature", "RR"]) | st.text(max_size=5),
        st.text(max_size=30) | st.sampled_from(["2015-01-09", "DescribeDomains", "JSON", "1.0", "HMAC-SHA1"]),
    ),
    st.binary(max_size=60),
)
def test_any_parameters_and_bytes_get_an_error_that_can_be_parsed(method, parameters, body):
    query = "&".join(
        f"{quote(name, safe='', errors='replace')}={quote(value, safe='', errors='replace')}"
        for name, value in parameters.items()
    )

    answer = gateway.answer(Cloud(), method, query, body, "")

    assert 400 <= answer.status < 500
    parse = json.loads if answer.content_type.startswith("application/json") else ElementTree.fromstring
    parse(answer.body.decode())


# Starting and stopping.


def test_stopped_gateway_frees_its_port_and_ends_open_connections(tls_files):
    gateway_ = Gateway(Cloud(), *tls_files)
    gateway_.start()
    context = ssl.create_default_context(cafile=tls_files[0])
    connection = http.client.HTTPSConnection("127.0.0.1", gateway_.port, context=context, timeout=20)
    connection.request("GET", "/")
    connection.getresponse().read()
    open_socket = connection.sock

    gateway_.stop()
    gateway_.stop()

    assert open_socket.recv(1) == b""
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gateway_.port))


def test_gateway_that_was_never_started_can_be_stopped(tls_files):
    Gateway(Cloud(), *tls_files).stop()
