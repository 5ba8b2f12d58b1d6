"""The emulated CDN and API Gateway: uploading a certificate, reading it back, and what the edges serve."""

import base64
import contextlib
import time

import pytest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from emulator_client import Issuer, key_pem, make_tls_files, running_emulator
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab.alibaba import certificates

DOMAIN = "www.example.test"


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def issuer():
    return Issuer()


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def emulator(tls_files):
    with running_emulator(*tls_files) as running:
        running.cloud.cdn.configuring_seconds = 0
        running.cloud.cdn.add_domain(DOMAIN)
        yield running


@pytest.fixture
def group_id(emulator):
    group_id = emulator.cloud.apigateway.add_group("demo")
    emulator.cloud.apigateway.bind_domain(group_id, DOMAIN)
    return group_id


def upload_to_cdn(emulator, chain, key, domain=DOMAIN, **more):
    form = {"SSLPub": chain, "SSLPri": key, "SSLProtocol": "on", "DomainName": domain, **more}
    form = {name: value for name, value in form.items() if value is not None}
    response = emulator.call("SetCdnDomainSSLCertificate", method="POST", product="cdn", form=form)
    return response.status_code, response.json().get("Code")


def upload_to_gateway(emulator, group_id, chain, key, name="name_1", domain=DOMAIN, **more):
    form = {"GroupId": group_id, "DomainName": domain, "CertificateName": name}
    form |= {"CertificateBody": chain, "CertificatePrivateKey": key, **more}
    form = {name: value for name, value in form.items() if value is not None}
    response = emulator.call("SetDomainCertificate", method="POST", product="cloudapi", form=form)
    return response.status_code, response.json().get("Code")


def ask(emulator, product, action, **parameters):
    """The answer of a raw, signed request; errors come back as (status, code)."""
    response = emulator.call(action, product=product, **parameters)
    return response.json() if response.ok else (response.status_code, response.json()["Code"])


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# Both products take and refuse the same uploads.


@pytest.fixture(params=["cdn", "apigateway"])
def upload(request, emulator, group_id):
    """(function that uploads, function that says what the edge serves, codes for bad chain and bad key)."""
    if request.param == "cdn":
        return (
            lambda chain, key: upload_to_cdn(emulator, chain, key),
            lambda: emulator.cloud.cdn.certificate_for(DOMAIN),
            ((400, "InvalidSSLPub"), (400, "InvalidSSLPri")),
        )
    return (
        lambda chain, key: upload_to_gateway(emulator, group_id, chain, key),
        lambda: emulator.cloud.apigateway.certificate_for(DOMAIN),
        ((400, "InvalidCertificateBody"), (400, "InvalidCertificatePrivateKey")),
    )


@pytest.mark.parametrize("curve", [None, ec.SECP256R1(), ec.SECP384R1()])
def test_certificate_that_fits_is_taken_and_served_as_it_was_sent(upload, issuer, rsa_key, curve):
    send, served, _ = upload
    chain, key = issuer.issue(DOMAIN, key=ec.generate_private_key(curve) if curve else rsa_key)

    assert send(chain, key) == (200, None)
    assert served() == (chain, key)


def test_wildcard_certificate_covers_one_label(upload, issuer):
    send, _, (bad_chain, _) = upload

    assert send(*issuer.issue("*.example.test")) == (200, None)
    assert send(*issuer.issue("*.test")) == bad_chain
    assert send(*issuer.issue("*.www.example.test")) == bad_chain


def test_ec_key_with_its_parameters_in_front_is_taken(upload, issuer):
    send, _, _ = upload
    chain, key = issuer.issue(DOMAIN)
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

    assert send(chain, parameters + key) == (200, None)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_end_of_the_text_does_not_matter(upload, issuer, ending):
    send, _, _ = upload
    chain, key = issuer.issue(DOMAIN)

    assert send(chain.strip() + ending, key.strip() + ending) == (200, None)


def test_certificate_for_another_name_is_refused(upload, issuer):
    send, served, (bad_chain, _) = upload

    assert send(*issuer.issue("other.example.test")) == bad_chain
    assert served() is None


def test_expired_certificate_is_refused(upload, issuer):
    send, served, (bad_chain, _) = upload

    assert send(*issuer.issue(DOMAIN, days=-1)) == bad_chain
    assert served() is None


def test_key_of_another_certificate_is_refused(upload, issuer):
    send, served, (_, bad_key) = upload
    chain, _ = issuer.issue(DOMAIN)
    _, key = issuer.issue(DOMAIN)

    assert send(chain, key) == bad_key
    assert served() is None


def test_chain_in_the_wrong_order_is_refused(upload, issuer):
    send, _, (bad_chain, _) = upload
    chain, key = issuer.issue(DOMAIN)
    leaf, intermediate = chain.split("-----END CERTIFICATE-----\n")[:2]
    end = "-----END CERTIFICATE-----\n"

    assert send(intermediate + end + leaf + end, key)[0] == 400
    assert send(leaf + end + leaf + end, key) == bad_chain


def test_chain_with_a_foreign_issuer_is_refused(upload, issuer):
    send, _, (bad_chain, _) = upload
    chain, key = issuer.issue(DOMAIN)
    foreign_chain, _ = Issuer().issue(DOMAIN)
    end = "-----END CERTIFICATE-----\n"

    assert send(chain.split(end)[0] + end + foreign_chain.split(end)[1] + end, key) == bad_chain


def test_chain_of_more_certificates_than_anyone_needs_is_refused(upload, issuer):
    send, _, (bad_chain, _) = upload
    chain, key = issuer.issue(DOMAIN)
    root = issuer.root.public_bytes(Encoding.PEM).decode()

    assert send(chain + root, key) == (200, None)
    assert send(chain + root * 9, key) == bad_chain


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chain, key: "not a certificate",
        lambda chain, key: chain + "trailing text",
        lambda chain, key: "leading text " + chain,
        lambda chain, key: chain + key,
        lambda chain, key: chain.replace("MII", "AAA", 1),
        lambda chain, key: chain[:-30],
        lambda chain, key: chain.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        lambda chain, key: chain * 6,
        lambda chain, key: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        lambda chain, key: "-----BEGIN CERTIFICATE-----\n" + "A" * 200_000,
    ],
)
def test_text_that_is_no_certificate_chain_is_refused(upload, issuer, spoil):
    send, served, (bad_chain, _) = upload
    chain, key = issuer.issue(DOMAIN)

    assert send(spoil(chain, key), key) == bad_chain
    assert served() is None


@pytest.mark.parametrize(
    "form",
    [
        lambda key: key_pem(key, PrivateFormat.PKCS8),
        lambda key: key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        ).decode(),
        lambda key: key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ).decode(),
        lambda key: key_pem(key) + key_pem(key),
        lambda key: key_pem(key)[:-40],
        lambda key: key_pem(key).replace("RSA PRIVATE", "EC PRIVATE"),
        lambda key: "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        lambda key: "not a key",
    ],
)
def test_key_in_any_form_but_unencrypted_traditional_pem_is_refused(upload, issuer, rsa_key, form):
    send, served, (_, bad_key) = upload
    chain, _ = issuer.issue(DOMAIN, key=rsa_key)

    assert send(chain, form(rsa_key)) == bad_key
    assert served() is None


def test_pkcs8_ec_and_ed25519_keys_are_refused(upload, issuer):
    send, _, (_, bad_key) = upload
    key = ec.generate_private_key(ec.SECP256R1())
    chain, _ = issuer.issue(DOMAIN, key=key)
    ed25519_pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )

    assert send(chain, key_pem(key, PrivateFormat.PKCS8)) == bad_key
    assert send(chain, ed25519_pem.decode()) == bad_key


@pytest.fixture(scope="module")
def certificate_and_key(issuer):
    chain, key = issuer.issue(DOMAIN)
    return x509.load_pem_x509_certificate(chain.encode()).public_bytes(Encoding.DER), key


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=3))
@example([(12, 1)])  # a version that does not exist
def test_damaged_certificate_is_refused_or_harmless(certificate_and_key, damages):
    certificate, key = bytearray(certificate_and_key[0]), certificate_and_key[1]
    for position, octet in damages:
        certificate[position % len(certificate)] = octet
    body = base64.b64encode(certificate).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"

    # Any other exception would be an InternalError of the emulator.
    with contextlib.suppress(certificates.BadCertificateError, certificates.KeyMismatchError):
        assert certificates.read(pem, key).leaf


# CDN.


def test_sdk_installs_a_certificate_and_reads_it_back(emulator, issuer, rsa_key):
    chain, key = issuer.issue(DOMAIN, "static.example.test", key=rsa_key)

    emulator.sdk(
        "cdn",
        "SetCdnDomainSSLCertificate",
        DomainName=DOMAIN,
        SSLProtocol="on",
        CertType="upload",
        CertName="lab-1",
        SSLPub=chain,
        SSLPri=key,
    )
    answer = emulator.sdk("cdn", "DescribeDomainCertificateInfo", DomainName=DOMAIN)
    (info,) = answer["CertInfos"]["CertInfo"]

    assert info["ServerCertificate"] == chain
    assert (info["DomainName"], info["CertName"], info["CertDomainName"]) == (DOMAIN, "lab-1", DOMAIN)
    assert (info["ServerCertificateStatus"], info["Status"], info["CertType"]) == ("on", "success", "upload")
    assert info["CertStartTime"] < info["CertUpdateTime"] < info["CertExpireTime"]
    assert info["CertId"].isdigit()
    assert key not in str(answer)


def test_domain_without_a_certificate_says_off(emulator):
    answer = emulator.sdk("cdn", "DescribeDomainCertificateInfo", DomainName=DOMAIN)
    (info,) = answer["CertInfos"]["CertInfo"]

    assert info["ServerCertificateStatus"] == "off"
    assert "ServerCertificate" not in info


def test_sdk_describes_a_domain(emulator, issuer):
    def detail():
        return emulator.sdk("cdn", "DescribeCdnDomainDetail", DomainName=DOMAIN)["GetDomainDetailModel"]

    assert (detail()["DomainStatus"], detail()["ServerCertificateStatus"]) == ("online", "off")
    upload_to_cdn(emulator, *issuer.issue(DOMAIN))
    assert (detail()["DomainName"], detail()["ServerCertificateStatus"]) == (DOMAIN, "on")


def test_old_certificate_stays_until_the_configuring_is_over(emulator, issuer):
    old, new = issuer.issue(DOMAIN), issuer.issue(DOMAIN)
    cdn = emulator.cloud.cdn
    upload_to_cdn(emulator, *old)
    assert cdn.certificate_for(DOMAIN) == old

    def shown():
        answer = ask(emulator, "cdn", "DescribeDomainCertificateInfo", DomainName=DOMAIN)
        return answer["CertInfos"]["CertInfo"][0]["ServerCertificate"]

    def status():
        answer = ask(emulator, "cdn", "DescribeCdnDomainDetail", DomainName=DOMAIN)
        return answer["GetDomainDetailModel"]["DomainStatus"]

    cdn.configuring_seconds = 3600
    assert upload_to_cdn(emulator, *new) == (200, None)
    assert (shown(), cdn.certificate_for(DOMAIN), status()) == (old[0], old, "configuring")
    assert upload_to_cdn(emulator, *new) == (403, "ServiceBusy")

    cdn._domains[DOMAIN].ready_at = time.monotonic()
    assert (shown(), cdn.certificate_for(DOMAIN), status()) == (new[0], new, "online")


def test_configuring_ends_by_itself(emulator, issuer):
    new = issuer.issue(DOMAIN)
    emulator.cloud.cdn.configuring_seconds = 0.2

    upload_to_cdn(emulator, *new)

    assert wait_until(lambda: emulator.cloud.cdn.certificate_for(DOMAIN) == new)


def test_switching_https_off_takes_the_certificate_away(emulator, issuer):
    upload_to_cdn(emulator, *issuer.issue(DOMAIN))

    emulator.sdk("cdn", "SetCdnDomainSSLCertificate", DomainName=DOMAIN, SSLProtocol="off")

    assert emulator.cloud.cdn.certificate_for(DOMAIN) is None
    answer = ask(emulator, "cdn", "DescribeDomainCertificateInfo", DomainName=DOMAIN)
    assert answer["CertInfos"]["CertInfo"][0]["ServerCertificateStatus"] == "off"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"SSLProtocol": "yes"}, (400, "InvalidSSLProtocol.ValueNotSupported")),
        ({"SSLProtocol": None}, (400, "MissingSSLProtocol")),
        ({"DomainName": None}, (400, "MissingDomainName")),
        ({"SSLPub": None}, (400, "SSLPub.MissingParameter")),
        ({"SSLPri": None}, (400, "SSLPri.MissingParameter")),
        ({"DomainName": "nowhere.example.test"}, (404, "InvalidDomain.NotFound")),
        ({"CertType": "free"}, (400, "InvalidCertType")),
        ({"CertType": "cas", "SSLPub": None, "SSLPri": None}, (400, "SSLPri.MissingParameter")),
        ({"CertType": "cas", "CertId": "x"}, (400, "InvalidCertId")),
        ({"CertType": "cas", "CertId": "1", "CertRegion": "mars"}, (400, "InvalidCertRegion")),
        ({"CertType": "cas", "CertId": "1"}, (404, "Certificate.NotFound")),
        ({"CertName": "x" * 129}, (400, "InvalidCertName")),
    ],
)
def test_upload_to_cdn_with_a_wrong_parameter_is_refused(emulator, issuer, change, answer):
    chain, key = issuer.issue(DOMAIN)

    assert upload_to_cdn(emulator, **{"chain": chain, "key": key, **change}) == answer
    assert emulator.cloud.cdn.certificate_for(DOMAIN) is None


def test_certificate_name_stands_for_one_certificate(emulator, issuer):
    first, second = issuer.issue(DOMAIN, "static.example.test"), issuer.issue(DOMAIN)
    emulator.cloud.cdn.add_domain("static.example.test")

    assert upload_to_cdn(emulator, *first, CertName="n") == (200, None)
    assert upload_to_cdn(emulator, *first, CertName="n", domain="static.example.test") == (200, None)
    assert upload_to_cdn(emulator, *second, CertName="n") == (400, "CertName.AlreadyExists")
    assert upload_to_cdn(emulator, *second, CertName="m") == (200, None)
    assert upload_to_cdn(emulator, *first) == (200, None)


def test_wildcard_domain_serves_every_name_below_it(emulator, issuer):
    chain, key = issuer.issue("*.wild.example.test")
    emulator.cloud.cdn.add_domain(".wild.example.test")

    assert upload_to_cdn(emulator, chain, key, domain=".wild.example.test") == (200, None)
    assert emulator.cloud.cdn.certificate_for("Any.wild.example.test.") == (chain, key)
    assert emulator.cloud.cdn.certificate_for("wild.example.test") is None
    assert emulator.cloud.cdn.certificate_for("a.b.wild.example.test") is None


def test_certificate_for_one_name_does_not_fit_a_wildcard_domain(emulator, issuer):
    emulator.cloud.cdn.add_domain(".wild.example.test")

    answer = upload_to_cdn(emulator, *issuer.issue("a.wild.example.test"), domain=".wild.example.test")

    assert answer == (400, "InvalidSSLPub")


def test_cdn_domains_of_another_account_are_not_there(emulator, issuer):
    emulator.cloud.cdn.add_domain("www.partner.test", account="partner")

    for action in ("DescribeCdnDomainDetail", "DescribeDomainCertificateInfo"):
        answer = ask(emulator, "cdn", action, DomainName="www.partner.test")
        assert answer == (404, "InvalidDomain.NotFound")
    answer = upload_to_cdn(emulator, *issuer.issue("www.partner.test"), domain="www.partner.test")
    assert answer == (404, "InvalidDomain.NotFound")
    assert ask(emulator, "cdn", "DescribeUserDomains", DomainName="www.partner.test")["TotalCount"] == 0


def test_user_domains_are_paged_and_searched(emulator):
    for number in range(24):
        emulator.cloud.cdn.add_domain(f"d{number:02}.example.test")

    def total(**parameters):
        return emulator.sdk("cdn", "DescribeUserDomains", **parameters)["TotalCount"]

    pages = [emulator.sdk("cdn", "DescribeUserDomains", PageNumber=number) for number in (1, 2)]
    names = [domain["DomainName"] for page in pages for domain in page["Domains"]["PageData"]]
    assert [len(page["Domains"]["PageData"]) for page in pages] == [20, 5]
    assert len(set(names)) == 25
    assert total(DomainName="d07.example.test") == 1
    assert total(DomainName="example.test") == 0
    assert total(DomainName="d0", DomainSearchType="pre_match") == 10
    assert total(DomainName="7.example.test", DomainSearchType="suf_match") == 2
    assert total(DomainName="1", DomainSearchType="fuzzy_match") == 12
    assert total(DomainStatus="online") == 25
    assert total(DomainStatus="offline") == 0
    assert ask(emulator, "cdn", "DescribeUserDomains", PageSize="501") == (400, "InvalidPageSize")
    assert ask(emulator, "cdn", "DescribeUserDomains", PageNumber="100001") == (400, "InvalidPageNumber")
    assert ask(emulator, "cdn", "DescribeUserDomains", DomainSearchType="x") == (
        400,
        "InvalidDomainSearchType",
    )


# API Gateway.


def test_sdk_binds_a_certificate_and_reads_it_back(emulator, group_id, issuer, rsa_key):
    chain, key = issuer.issue(DOMAIN, key=rsa_key)

    emulator.sdk(
        "cloudapi",
        "SetDomainCertificate",
        GroupId=group_id,
        DomainName=DOMAIN,
        CertificateName="lab_1",
        CertificateBody=chain,
        CertificatePrivateKey=key,
    )
    domain = emulator.sdk("cloudapi", "DescribeDomain", GroupId=group_id, DomainName=DOMAIN)

    # The service really gives the private key back.
    assert (domain["CertificateBody"], domain["CertificatePrivateKey"]) == (chain, key)
    assert (domain["GroupId"], domain["DomainName"], domain["CertificateName"]) == (group_id, DOMAIN, "lab_1")
    assert (domain["DomainBindingStatus"], domain["DomainLegalStatus"]) == ("BINDING", "NORMAL")
    assert domain["CertificateValidStart"] < time.time() * 1000 < domain["CertificateValidEnd"]


def test_old_certificate_stays_until_the_new_one_is_installed(emulator, group_id, issuer):
    old, new = issuer.issue(DOMAIN), issuer.issue(DOMAIN)
    gateway = emulator.cloud.apigateway
    upload_to_gateway(emulator, group_id, *old)

    def shown():
        answer = ask(emulator, "cloudapi", "DescribeDomain", GroupId=group_id, DomainName=DOMAIN)
        return answer["CertificateBody"]

    gateway.installing_seconds = 3600
    assert upload_to_gateway(emulator, group_id, *new) == (200, None)
    assert (shown(), gateway.certificate_for(DOMAIN)) == (old[0], old)

    gateway._groups[group_id].domains[DOMAIN].ready_at = time.monotonic()
    assert (shown(), gateway.certificate_for(DOMAIN)) == (new[0], new)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"GroupId": None}, (400, "MissingGroupId")),
        ({"GroupId": "unknown"}, (400, "NotFoundApiGroup")),
        ({"DomainName": None}, (400, "MissingDomainName")),
        ({"domain": "other.example.test"}, (400, "NotFoundDomain")),
        ({"CertificateName": None}, (400, "MissingCertificateName")),
        ({"CertificateBody": None}, (400, "MissingCertificateBody")),
        ({"CertificatePrivateKey": None}, (400, "MissingCertificatePrivateKey")),
        ({"RegionId": "cn-beijing"}, (400, "NotFoundApiGroup")),
        *(
            ({"name": name}, (400, "InvalidCertificateName"))
            for name in ("abc", "x" * 51, "1abc", "_abc", "ab-cd", "ab cd", "äbcd", "abcd\n")
        ),
    ],
)
def test_upload_to_the_gateway_with_a_wrong_parameter_is_refused(emulator, group_id, issuer, change, answer):
    chain, key = issuer.issue(DOMAIN)

    assert (
        upload_to_gateway(emulator, **{"group_id": group_id, "chain": chain, "key": key, **change}) == answer
    )
    assert emulator.cloud.apigateway.certificate_for(DOMAIN) is None


@pytest.mark.parametrize("name", ["abcd", "x" * 50, "A_1_", "lab_0a1b2c"])
def test_certificate_name_of_legal_form_is_taken(emulator, group_id, issuer, name):
    assert upload_to_gateway(emulator, group_id, *issuer.issue(DOMAIN), name=name) == (200, None)


def test_group_of_another_account_is_not_there(emulator, issuer):
    anothers = emulator.cloud.apigateway.add_group("theirs", account="partner")
    emulator.cloud.apigateway.bind_domain(anothers, DOMAIN)

    assert upload_to_gateway(emulator, anothers, *issuer.issue(DOMAIN)) == (400, "NotFoundApiGroup")
    assert ask(emulator, "cloudapi", "DescribeApiGroup", GroupId=anothers) == (400, "NotFoundApiGroup")
    assert ask(emulator, "cloudapi", "DescribeApiGroups")["TotalCount"] == 0


def test_sdk_deletes_a_certificate(emulator, group_id, issuer):
    upload_to_gateway(emulator, group_id, *issuer.issue(DOMAIN))
    domain = emulator.sdk("cloudapi", "DescribeDomain", GroupId=group_id, DomainName=DOMAIN)
    wanted = {"GroupId": group_id, "DomainName": DOMAIN, "CertificateId": domain["CertificateId"]}

    for _ in range(2):
        # The second time there is none, which is success too.
        emulator.sdk("cloudapi", "DeleteDomainCertificate", **wanted)
        assert emulator.cloud.apigateway.certificate_for(DOMAIN) is None
    with pytest.raises(ServerException) as caught:
        emulator.sdk("cloudapi", "DeleteDomainCertificate", **{**wanted, "GroupId": "unknown"})
    assert caught.value.error_code == "InvalidGroupId.NotFound"


def test_deleting_another_certificate_id_keeps_the_certificate(emulator, group_id, issuer):
    new = issuer.issue(DOMAIN)
    upload_to_gateway(emulator, group_id, *new)

    wanted = {"GroupId": group_id, "DomainName": DOMAIN, "CertificateId": "other"}
    ask(emulator, "cloudapi", "DeleteDomainCertificate", **wanted)

    assert emulator.cloud.apigateway.certificate_for(DOMAIN) == new


def test_sdk_binds_a_domain_to_a_group(emulator, group_id, issuer):
    answer = emulator.sdk("cloudapi", "SetDomain", GroupId=group_id, DomainName="new.example.test")
    assert (answer["GroupId"], answer["DomainName"]) == (group_id, "new.example.test")
    assert (answer["DomainBindingStatus"], answer["DomainLegalStatus"]) == ("BINDING", "NORMAL")

    new = issuer.issue("new.example.test")
    assert upload_to_gateway(emulator, group_id, *new, domain="new.example.test") == (200, None)
    # Binding it again keeps its certificate.
    emulator.sdk("cloudapi", "SetDomain", GroupId=group_id, DomainName="new.example.test")
    assert emulator.cloud.apigateway.certificate_for("new.example.test") == new


def test_domain_cannot_be_bound_to_two_groups(emulator, group_id):
    other = emulator.cloud.apigateway.add_group("other")

    assert ask(emulator, "cloudapi", "SetDomain", GroupId=other, DomainName=DOMAIN) == (400, "RepeatedDomain")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"DomainName": "no domain"}, "InvalidDomainName"),
        ({"DomainName": ""}, "MissingDomainName"),
        ({"GroupId": "unknown"}, "NotFoundApiGroup"),
        ({"CustomDomainType": "SPACE"}, "InvalidCustomDomainType"),
        ({"BindStageName": "LIVE"}, "InvalidBindStageName"),
        ({"IsHttpRedirectToHttps": "perhaps"}, "InvalidIsHttpRedirectToHttps"),
    ],
)
def test_domain_with_a_wrong_parameter_is_not_bound(emulator, group_id, change, code):
    wanted = {"GroupId": group_id, "DomainName": "new.example.test", **change}

    assert ask(emulator, "cloudapi", "SetDomain", **wanted) == (400, code)


def test_unknown_domain_of_a_group_is_not_found(emulator, group_id):
    answer = ask(emulator, "cloudapi", "DescribeDomain", GroupId=group_id, DomainName="x.example.test")

    assert answer == (400, "NotFoundDomain")


def test_sdk_describes_a_group_with_its_domains(emulator, group_id, issuer):
    upload_to_gateway(emulator, group_id, *issuer.issue(DOMAIN), name="lab_1")

    answer = emulator.sdk("cloudapi", "DescribeApiGroup", GroupId=group_id)
    (item,) = answer["CustomDomains"]["DomainItem"]

    assert (answer["GroupName"], answer["RegionId"]) == ("demo", "cn-hangzhou")
    assert (item["DomainName"], item["CertificateName"]) == (DOMAIN, "lab_1")
    assert {stage["StageName"] for stage in answer["StageItems"]["StageInfo"]} == {"TEST", "PRE", "RELEASE"}
    # Unlike DescribeDomain, the list of domains holds no key.
    assert "PRIVATE KEY" not in str(answer)


def test_groups_are_paged_and_searched(emulator):
    for number in range(12):
        emulator.cloud.apigateway.add_group(f"group{number:02}")
    elsewhere = emulator.cloud.apigateway.add_group("elsewhere", region="cn-beijing")

    def names(answer):
        return [group["GroupName"] for group in answer["ApiGroupAttributes"]["ApiGroupAttribute"]]

    pages = [emulator.sdk("cloudapi", "DescribeApiGroups", PageNumber=number) for number in (1, 2)]
    assert [len(names(page)) for page in pages] == [10, 2]
    assert len({name for page in pages for name in names(page)}) == 12
    assert pages[0]["TotalCount"] == 12
    assert names(emulator.sdk("cloudapi", "DescribeApiGroups", GroupName="group07")) == ["group07"]
    assert names(ask(emulator, "cloudapi", "DescribeApiGroups", Sort="asc"))[0] == "group00"
    assert ask(emulator, "cloudapi", "DescribeApiGroups", RegionId="cn-beijing")["TotalCount"] == 1
    assert ask(emulator, "cloudapi", "DescribeApiGroups", GroupId=elsewhere)["TotalCount"] == 0
    assert ask(emulator, "cloudapi", "DescribeApiGroups", PageSize="51") == (400, "InvalidPageSize")
