"""The emulated AliDNS: nine actions and their errors, and what the name servers read from it."""

import time

import pytest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from emulator_client import make_tls_files, running_emulator


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def emulator(tls_files):
    with running_emulator(*tls_files) as running:
        yield running


@pytest.fixture
def dns(emulator):
    return emulator.cloud.dns


def ask(emulator, action, **parameters):
    """The answer of a raw, signed request; errors come back as (status, code)."""
    response = emulator.call(action, **parameters)
    return response.json() if response.ok else (response.status_code, response.json()["Code"])


def add(emulator, rr="_acme-challenge", type_="TXT", value="v", **more):
    parameters = {"DomainName": "example.test", "RR": rr, "Type": type_, "Value": value, **more}
    return ask(emulator, "AddDomainRecord", **parameters)


def found(answer):
    return [record["RR"] for record in answer["DomainRecords"]["Record"]]


# With the SDK, every action once.


def test_sdk_adds_describes_updates_and_deletes_a_record(emulator, dns):
    record_id = emulator.sdk(
        "alidns",
        "AddDomainRecord",
        DomainName="example.test",
        RR="_acme-challenge.www",
        Type="TXT",
        Value="one",
    )["RecordId"]
    (record,) = emulator.sdk(
        "alidns", "DescribeDomainRecords", DomainName="example.test", RRKeyWord="_acme-challenge"
    )["DomainRecords"]["Record"]
    assert record["RecordId"] == record_id
    assert record["Value"] == "one"
    assert (record["TTL"], record["Line"], record["Status"]) == (600, "default", "ENABLE")
    assert record["Locked"] is False

    emulator.sdk(
        "alidns",
        "UpdateDomainRecord",
        RecordId=record_id,
        RR="_acme-challenge.www",
        Type="TXT",
        Value="two",
        TTL=1200,
    )
    (version,) = dns.records("example.test")
    assert (version.record_id, version.value, version.ttl) == (record_id, "two", 1200)
    assert version.name == "_acme-challenge.www.example.test"

    assert emulator.sdk("alidns", "DeleteDomainRecord", RecordId=record_id)["RecordId"] == record_id
    assert dns.records("example.test") == ()


def test_sdk_describes_and_deletes_all_records_of_a_name(emulator, dns):
    for value in ("one", "two"):
        add(emulator, value=value)
    add(emulator, rr="_acme-challenge.www")

    name = "_acme-challenge.example.test"
    answer = emulator.sdk("alidns", "DescribeSubDomainRecords", SubDomain=name, Type="TXT")
    assert {record["Value"] for record in answer["DomainRecords"]["Record"]} == {"one", "two"}

    answer = emulator.sdk("alidns", "DeleteSubDomainRecords", DomainName="example.test", RR="_acme-challenge")
    # Alibaba's count is a string here.
    assert (answer["RR"], answer["TotalCount"]) == ("_acme-challenge", "2")
    assert [record.rr for record in dns.records("example.test")] == ["_acme-challenge.www"]


def test_sdk_describes_domains_and_one_in_detail(emulator, dns):
    dns.add_record("example.test", "@", "A", "127.0.0.1")

    (domain,) = emulator.sdk("alidns", "DescribeDomains")["Domains"]["Domain"]
    assert (domain["DomainName"], domain["PunyCode"], domain["RecordCount"]) == (
        "example.test",
        "example.test",
        1,
    )
    assert domain["DnsServers"]["DnsServer"] == ["ns1.lab.test", "ns2.lab.test"]

    info = emulator.sdk("alidns", "DescribeDomainInfo", DomainName="example.test", NeedDetailAttributes=True)
    assert info["MinTtl"] == 600
    assert info["RecordLines"]["RecordLine"][0]["LineCode"] == "default"
    assert "MinTtl" not in emulator.sdk("alidns", "DescribeDomainInfo", DomainName="example.test")


@pytest.mark.parametrize(
    ("name", "domain", "rr", "level"),
    [
        ("example.test", "example.test", "@", 1),
        ("_acme-challenge.a.example.test", "example.test", "_acme-challenge.a", 3),
        ("www.workshop.com.test", "workshop.com.test", "www", 2),
        ("www.dev.example.test", "example.test", "www.dev", 3),
        ("www.elsewhere.test", "elsewhere.test", "www", 2),
    ],
)
def test_main_domain_is_the_registered_one(emulator, dns, name, domain, rr, level):
    dns.add_zone("workshop.com.test")
    dns.add_zone("dev.example.test")

    answer = emulator.sdk("alidns", "GetMainDomainName", InputString=name)

    assert (answer["DomainName"], answer["RR"], answer["DomainLevel"]) == (domain, rr, level)


# Which zone, and whose.


@pytest.mark.parametrize(
    "action", ["AddDomainRecord", "DescribeDomainRecords", "DescribeDomainInfo", "DeleteSubDomainRecords"]
)
@pytest.mark.parametrize(
    ("domain", "code"),
    [
        ("nowhere.test", "InvalidDomainName.NoExist"),
        ("www.example.test", "InvalidDomainName.NoExist"),
        ("_acme-challenge.example.test", "InvalidDomainName.Format"),
        ("test", "InvalidDomainName.Format"),
        ("example..test", "InvalidDomainName.Format"),
        ("a" * 64 + ".test", "InvalidDomainName.Format"),
        ("partner.test", "IncorrectDomainUser"),
    ],
)
def test_domain_that_cannot_be_used_is_refused(emulator, dns, action, domain, code):
    dns.add_zone("partner.test", account="partner")

    assert ask(emulator, action, DomainName=domain, RR="@", Type="TXT", Value="v") == (400, code)


def test_domain_error_says_what_the_service_says(emulator):
    message = emulator.call("DescribeDomainInfo", DomainName="nowhere.test").json()["Message"]

    assert message == "The specified domain name does not exist. Refresh the page and try again."


def test_domain_name_is_not_case_sensitive(emulator, dns):
    assert "RecordId" in add(emulator, DomainName="Example.TEST")
    assert len(dns.records("EXAMPLE.test")) == 1


def test_international_domain_is_found_in_both_spellings(emulator, dns):
    dns.add_zone("bücher.test")
    for name in ("bücher.test", "xn--bcher-kva.test"):
        answer = ask(emulator, "DescribeDomainInfo", DomainName=name)
        assert (answer["DomainName"], answer["PunyCode"]) == ("bücher.test", "xn--bcher-kva.test")
    assert "RecordId" in add(emulator, DomainName="bücher.test", rr="straße.mail")
    assert "xn--bcher-kva.test" in dns.zone_names()
    assert dns.records("bücher.test")[0].name.endswith(".mail.xn--bcher-kva.test")
    assert dns.records("bücher.test")[0].name.isascii()


def test_only_the_accounts_own_domains_are_listed(emulator, dns):
    dns.add_zone("partner.test", account="partner")
    partner = emulator.cloud.ram.add_access_key(account="partner")

    names = [
        [domain["DomainName"] for domain in ask(emulator, "DescribeDomains", key=key)["Domains"]["Domain"]]
        for key in (emulator.key, partner)
    ]

    assert names == [["example.test"], ["partner.test"]]
    assert set(dns.zone_names()) == {"example.test", "partner.test"}


@pytest.mark.parametrize("action", ["UpdateDomainRecord", "DeleteDomainRecord"])
def test_record_that_is_unknown_or_anothers_does_not_exist_in_the_account(emulator, dns, action):
    dns.add_zone("partner.test", account="partner")
    anothers = dns.add_record("partner.test", "@", "TXT", "theirs")

    for record_id in (anothers, "12345", "not a number"):
        answer = ask(emulator, action, RecordId=record_id, RR="@", Type="TXT", Value="mine")
        assert answer == (400, "DomainRecordNotBelongToUser")
    assert [record.value for record in dns.records("partner.test")] == ["theirs"]


# Adding and updating.


@pytest.mark.parametrize(
    ("action", "needed"),
    [
        ("AddDomainRecord", ["DomainName", "RR", "Type", "Value"]),
        ("UpdateDomainRecord", ["RecordId", "RR", "Type", "Value"]),
        ("DeleteDomainRecord", ["RecordId"]),
        ("DeleteSubDomainRecords", ["DomainName", "RR"]),
        ("DescribeDomainRecords", ["DomainName"]),
        ("DescribeSubDomainRecords", ["SubDomain"]),
        ("DescribeDomainInfo", ["DomainName"]),
        ("GetMainDomainName", ["InputString"]),
    ],
)
def test_missing_parameter_is_named(emulator, action, needed):
    complete = {"DomainName": "example.test", "RR": "@", "Type": "TXT", "Value": "v", "RecordId": "1"}
    complete |= {"SubDomain": "a.example.test", "InputString": "a.example.test"}
    for name in needed:
        response = emulator.call(action, **{**complete, name: ""})
        assert (response.status_code, response.json()["Code"]) == (400, f"Missing{name}")
        assert response.json()["Message"] == f"{name} is mandatory for this action."


def test_same_record_twice_is_a_duplicate(emulator, dns):
    add(emulator)

    assert add(emulator) == (400, "DomainRecordDuplicate")
    assert add(emulator, rr="_ACME-challenge") == (400, "DomainRecordDuplicate")
    assert "RecordId" in add(emulator, value="V")
    assert "RecordId" in add(emulator, Line="telecom")
    assert len(dns.records("example.test")) == 3


def test_two_txt_values_stand_at_one_name(emulator, dns):
    add(emulator, value="apex")
    add(emulator, value="wildcard")

    assert {record.value for record in dns.records("example.test")} == {"apex", "wildcard"}


def test_update_that_changes_nothing_is_a_duplicate(emulator):
    record_id = add(emulator)["RecordId"]
    same = {"RecordId": record_id, "RR": "_acme-challenge", "Type": "TXT", "Value": "v"}

    assert ask(emulator, "UpdateDomainRecord", **same) == (400, "DomainRecordDuplicate")
    assert ask(emulator, "UpdateDomainRecord", **same, TTL="1200")["RecordId"] == record_id


def test_update_into_another_record_is_a_duplicate(emulator):
    add(emulator, value="one")
    record_id = add(emulator, value="two")["RecordId"]

    answer = ask(
        emulator, "UpdateDomainRecord", RecordId=record_id, RR="_acme-challenge", Type="TXT", Value="one"
    )

    assert answer == (400, "DomainRecordDuplicate")


VALUES = {
    "A": "192.0.2.1",
    "AAAA": "2001:db8::1",
    "CNAME": "target.test",
    "MX": "mail.test",
    "NS": "ns.test",
    "TXT": "text",
    "SRV": "1 2 443 host.test",
    "CAA": '0 issue "ca.test"',
    "REDIRECT_URL": "http://target.test/",
}


@pytest.mark.parametrize(
    ("rr", "first", "second", "stand_together"),
    [
        ("www", "CNAME", "TXT", False),
        ("www", "TXT", "CNAME", False),
        ("www", "A", "CNAME", False),
        ("www", "MX", "CNAME", False),
        ("www", "CNAME", "CAA", False),
        ("@", "CNAME", "MX", True),
        ("@", "TXT", "CNAME", True),
        ("@", "A", "CNAME", False),
        ("@", "NS", "TXT", True),
        ("dev", "NS", "TXT", False),
        ("www", "A", "AAAA", True),
        ("www", "A", "TXT", True),
        ("www", "TXT", "CAA", True),
        ("www", "REDIRECT_URL", "A", False),
        ("www", "REDIRECT_URL", "TXT", True),
    ],
)
def test_types_that_exclude_each_other_conflict(emulator, rr, first, second, stand_together):
    more = {"Priority": "10"}
    assert "RecordId" in add(emulator, rr, first, VALUES[first], **more)

    answer = add(emulator, rr, second, VALUES[second], **more)

    assert ("RecordId" in answer) if stand_together else answer == (400, "DomainRecordConflict")


def test_second_cname_at_a_name_conflicts_but_not_on_another_line(emulator):
    add(emulator, "www", "CNAME", "one.test")

    assert add(emulator, "www", "CNAME", "two.test") == (400, "DomainRecordConflict")
    assert "RecordId" in add(emulator, "www", "CNAME", "two.test", Line="telecom")


def test_record_may_be_updated_to_a_type_that_would_conflict_with_itself(emulator, dns):
    record_id = add(emulator, "www", "A", "192.0.2.1")["RecordId"]

    ask(emulator, "UpdateDomainRecord", RecordId=record_id, RR="www", Type="CNAME", Value="target.test")

    assert [record.type for record in dns.records("example.test")] == ["CNAME"]


@pytest.mark.parametrize("ttl", ["599", "1", "0", "86401"])
def test_ttl_outside_the_editions_range_is_refused_with_the_range(emulator, ttl):
    response = emulator.call(
        "AddDomainRecord", DomainName="example.test", RR="a", Type="TXT", Value="v", TTL=ttl
    )

    assert (response.status_code, response.json()["Code"]) == (400, "QuotaExceeded.TTL")
    assert response.json()["Message"] == (
        "The specified TTL is invalid. A valid TTL must be in the range of 600 to 86400."
    )


def test_ttl_of_one_second_is_for_zones_that_allow_it(emulator, dns):
    dns.add_zone("ultimate.test", min_ttl=1)

    assert "RecordId" in add(emulator, DomainName="ultimate.test", TTL="1")


@pytest.mark.parametrize("ttl", ["abc", "-1", "6e2", "600.0", " 600", "６００", "9" * 400])
def test_ttl_that_is_no_number_is_refused(emulator, ttl):
    assert add(emulator, TTL=ttl) == (400, "InvalidTTL")


@pytest.mark.parametrize("rr", ["@", "*", "*.www", "www", "_acme-challenge", "a.b.c", "x" * 63, "a-b", "0"])
def test_host_record_of_every_good_form_is_taken(emulator, rr):
    assert "RecordId" in add(emulator, rr=rr)


@pytest.mark.parametrize(
    "rr",
    ["a..b", ".a", "a.", "-a", "a-", "a b", "w*w", "www.*", "**", "*.*", "x" * 64, "a@b", "a/b", "x." * 130 + "x"],
)  # fmt: skip
def test_host_record_of_bad_form_is_refused(emulator, rr):
    assert add(emulator, rr=rr) == (400, "InvalidParameter")


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("A", "192.0.2"),
        ("A", "2001:db8::1"),
        ("A", "host.test"),
        ("AAAA", "192.0.2.1"),
        ("CNAME", "a..b"),
        ("CNAME", "http://a.test"),
        ("MX", "-.test"),
        ("NS", "ns test"),
        ("TXT", "x" * 513),
        ("TXT", "line\nbreak"),
        ("TXT", "\u4e2d"),
        ("SRV", "1 2 3"),
        ("SRV", "1 2 70000 host.test"),
        ("CAA", "0 issue ca.test"),
        ("CAA", '256 issue "ca.test"'),
        ("REDIRECT_URL", "ftp://a.test"),
        ("SOA", "http://a.test"),
    ],
)
def test_value_that_does_not_fit_its_type_is_refused(emulator, type_, value):
    assert add(emulator, "www", type_, value, Priority="10") == (400, "InvalidParameter")


def test_txt_of_512_characters_is_taken(emulator, dns):
    add(emulator, value="x" * 512)

    assert dns.records("example.test")[0].value == "x" * 512


def test_host_name_value_is_kept_without_its_trailing_dot(emulator, dns):
    add(emulator, "www", "CNAME", "target.test.")

    assert dns.records("example.test")[0].value == "target.test"


def test_mx_needs_a_priority_from_1_to_50(emulator, dns):
    assert add(emulator, "@", "MX", "mail.test") == (400, "MissingPriority")
    assert add(emulator, "@", "MX", "mail.test", Priority="51") == (400, "InvalidPriority")
    add(emulator, "@", "MX", "mail.test", Priority="50")
    assert dns.records("example.test")[0].priority == 50


def test_unknown_line_is_refused(emulator):
    assert add(emulator, Line="nonsense") == (400, "InvalidParameter")


def test_type_may_be_written_in_lower_case(emulator, dns):
    add(emulator, type_="txt")

    assert dns.records("example.test")[0].type == "TXT"


# Locked records.


def test_locked_record_can_be_neither_updated_nor_deleted(emulator, dns):
    record_id = dns.add_record("example.test", "a", "TXT", "locked", locked=True)
    update = {"RecordId": record_id, "RR": "a", "Type": "TXT", "Value": "new"}

    assert ask(emulator, "UpdateDomainRecord", **update) == (400, "DomainRecordLocked")
    assert ask(emulator, "DeleteDomainRecord", RecordId=record_id) == (400, "DomainRecordLocked")
    assert [record.value for record in dns.records("example.test")] == ["locked"]


def test_deleting_all_of_a_name_skips_locked_records_and_other_types(emulator, dns):
    dns.add_record("example.test", "a", "TXT", "locked", locked=True)
    dns.add_record("example.test", "a", "A", "192.0.2.1")
    dns.add_record("example.test", "a", "TXT", "free")
    dns.add_record("example.test", "b", "TXT", "other name")

    answer = ask(emulator, "DeleteSubDomainRecords", DomainName="example.test", RR="A", Type="TXT")

    assert answer["TotalCount"] == "1"
    assert {record.value for record in dns.records("example.test")} == {"locked", "192.0.2.1", "other name"}


# Searching and paging.


@pytest.fixture
def many(emulator, dns):
    for rr, type_, value in [
        ("_acme-challenge", "TXT", "one"),
        ("_ACME-challenge.www", "TXT", "two"),
        ("www", "A", "192.0.2.1"),
        ("one", "CNAME", "www.example.test"),
    ]:
        dns.add_record("example.test", rr, type_, value)
    dns.add_record("example.test", "off", "TXT", "three", status="DISABLE", line="telecom")
    return emulator


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({}, {"_acme-challenge", "_ACME-challenge.www", "www", "one", "off"}),
        ({"RRKeyWord": "_acme"}, {"_acme-challenge", "_ACME-challenge.www"}),
        ({"RRKeyWord": "WWW"}, {"_ACME-challenge.www", "www"}),
        ({"TypeKeyWord": "txt"}, {"_acme-challenge", "_ACME-challenge.www", "off"}),
        ({"TypeKeyWord": "TX"}, set()),
        ({"Type": "A"}, {"www"}),
        ({"ValueKeyWord": "T"}, {"_ACME-challenge.www", "off", "one"}),
        ({"RRKeyWord": "www", "Type": "TXT"}, {"_ACME-challenge.www"}),
        ({"KeyWord": "one"}, {"_acme-challenge", "one"}),
        ({"KeyWord": "on", "SearchMode": "LIKE"}, {"_acme-challenge", "one"}),
        ({"KeyWord": "on", "SearchMode": "EXACT"}, set()),
        ({"KeyWord": "WWW", "SearchMode": "EXACT"}, {"www"}),
        ({"KeyWord": "one", "SearchMode": "ADVANCED", "RRKeyWord": "www"}, {"_ACME-challenge.www", "www"}),
        ({"KeyWord": "www", "RRKeyWord": "nothing"}, {"_ACME-challenge.www", "www", "one"}),
        ({"Status": "Disable"}, {"off"}),
        ({"Status": "Enable"}, {"_acme-challenge", "_ACME-challenge.www", "www", "one"}),
        ({"Line": "telecom"}, {"off"}),
    ],
)  # fmt: skip
def test_search_finds_what_the_documentation_says(many, search, expected):
    answer = ask(many, "DescribeDomainRecords", DomainName="example.test", **search)

    assert set(found(answer)) == expected
    assert answer["TotalCount"] == len(expected)


@pytest.mark.parametrize(
    ("parameter", "value"), [("SearchMode", "FUZZY"), ("Direction", "UP"), ("Status", "maybe")]
)
def test_search_parameter_outside_its_values_is_refused(emulator, parameter, value):
    answer = ask(emulator, "DescribeDomainRecords", DomainName="example.test", **{parameter: value})

    assert answer == (400, f"Invalid{parameter}")


def test_newest_record_comes_first_unless_asked_otherwise(many):
    rrs = found(ask(many, "DescribeDomainRecords", DomainName="example.test"))
    backwards = found(ask(many, "DescribeDomainRecords", DomainName="example.test", Direction="ASC"))

    assert rrs[0] == "off"
    assert rrs[-1] == "_acme-challenge"
    assert backwards == rrs[::-1]


def test_pages_together_hold_every_record_once(emulator, dns):
    for number in range(45):
        dns.add_record("example.test", f"r{number}", "TXT", "v")

    pages = [
        ask(emulator, "DescribeDomainRecords", DomainName="example.test", PageNumber=str(number))
        for number in (1, 2, 3, 4)
    ]

    assert [len(found(page)) for page in pages] == [20, 20, 5, 0]
    assert [(page["TotalCount"], page["PageNumber"], page["PageSize"]) for page in pages] == [
        (45, number, 20) for number in (1, 2, 3, 4)
    ]
    assert len({rr for page in pages for rr in found(page)}) == 45


@pytest.mark.parametrize(
    ("action", "maximum"),
    [("DescribeDomainRecords", 500), ("DescribeSubDomainRecords", 500), ("DescribeDomains", 100)],
)
def test_page_size_and_number_have_limits(emulator, action, maximum):
    parameters = {"DomainName": "example.test", "SubDomain": "a.example.test"}

    assert ask(emulator, action, **parameters, PageSize=str(maximum))["PageSize"] == maximum
    for bad in (str(maximum + 1), "0", "-1", "x"):
        assert ask(emulator, action, **parameters, PageSize=bad) == (400, "InvalidPageSize")
    for bad in ("0", "-1", "1.5"):
        assert ask(emulator, action, **parameters, PageNumber=bad) == (400, "InvalidPageNumber")


def test_domains_are_paged_and_searched(emulator, dns):
    for number in range(40):
        dns.add_zone(f"zone{number:02}.test")
    names = []
    for number in (1, 2, 3):
        answer = emulator.sdk("alidns", "DescribeDomains", PageNumber=number)
        assert answer["TotalCount"] == 41
        names += [domain["DomainName"] for domain in answer["Domains"]["Domain"]]

    assert len(set(names)) == 41
    assert ask(emulator, "DescribeDomains", KeyWord="ZONE3")["TotalCount"] == 10
    assert ask(emulator, "DescribeDomains", KeyWord="zone3", SearchMode="EXACT")["TotalCount"] == 0
    assert ask(emulator, "DescribeDomains", KeyWord="zone33.test", SearchMode="EXACT")["TotalCount"] == 1
    # Fuzzy: the notorious trap of taking the first domain that KeyWord finds.
    dns.add_zone("notexample.test")
    assert ask(emulator, "DescribeDomains", KeyWord="example.test")["TotalCount"] == 2


# Records of one name.


def test_sub_domain_without_a_domain_is_split_at_the_registered_domain(emulator, dns):
    dns.add_zone("dev.example.test")
    dns.add_record("dev.example.test", "www", "TXT", "in the sub-zone")
    dns.add_record("example.test", "www.dev", "TXT", "in the parent")

    def values(**parameters):
        answer = ask(emulator, "DescribeSubDomainRecords", SubDomain="www.dev.example.test", **parameters)
        return [record["Value"] for record in answer["DomainRecords"]["Record"]]

    assert values() == ["in the parent"]
    assert values(DomainName="dev.example.test") == ["in the sub-zone"]
    assert values(DomainName="example.test") == ["in the parent"]


def test_sub_domain_of_a_multi_label_suffix_is_found(emulator, dns):
    dns.add_zone("workshop.com.test")
    dns.add_record("workshop.com.test", "shop", "A", "192.0.2.1")

    answer = ask(emulator, "DescribeSubDomainRecords", SubDomain="Shop.Workshop.com.test")

    assert found(answer) == ["shop"]


def test_sub_domain_that_is_the_domain_itself_has_the_records_at_the_apex(emulator, dns):
    dns.add_record("example.test", "@", "A", "192.0.2.1")
    dns.add_record("example.test", "www", "A", "192.0.2.1")

    assert found(ask(emulator, "DescribeSubDomainRecords", SubDomain="example.test")) == ["@"]


def test_sub_domain_outside_the_given_domain_or_of_others_is_refused(emulator, dns):
    dns.add_zone("partner.test", account="partner")

    outside = {"SubDomain": "a.other.test", "DomainName": "example.test"}
    assert ask(emulator, "DescribeSubDomainRecords", **outside) == (400, "InvalidParameter")
    anothers = {"SubDomain": "a.partner.test"}
    assert ask(emulator, "DescribeSubDomainRecords", **anothers) == (400, "IncorrectDomainUser")
    unknown = {"SubDomain": "a.nowhere.test"}
    assert ask(emulator, "DescribeSubDomainRecords", **unknown) == (400, "InvalidDomainName.NoExist")


@pytest.mark.parametrize("text", ["a." * 59 + "example.test", "test", "a..test", "a b.test"])
def test_main_domain_of_no_domain_name_is_refused(emulator, text):
    assert ask(emulator, "GetMainDomainName", InputString=text) == (400, "InvalidDomainName.Format")


# What name servers read.


def test_records_can_be_read_as_they_were(emulator, dns):
    before = time.monotonic()
    record_id = add(emulator, value="one")["RecordId"]
    added = time.monotonic()
    update = {"RecordId": record_id, "RR": "_acme-challenge", "Type": "TXT", "Value": "two"}
    ask(emulator, "UpdateDomainRecord", **update)
    updated = time.monotonic()
    ask(emulator, "DeleteDomainRecord", RecordId=record_id)

    def values(at=None):
        return [record.value for record in dns.records("example.test", at)]

    assert [values(before), values(added), values(updated), values()] == [[], ["one"], ["two"], []]


def test_update_leaves_no_moment_without_the_record(emulator, dns):
    record_id = add(emulator, value="one")["RecordId"]
    update = {"RecordId": record_id, "RR": "_acme-challenge", "Type": "TXT", "Value": "two"}
    ask(emulator, "UpdateDomainRecord", **update)

    (new,) = dns.records("example.test")

    assert [record.value for record in dns.records("example.test", new.created_at)] == ["two"]
    just_before = new.created_at - 1e-6
    assert [record.value for record in dns.records("example.test", just_before)] == ["one"]


def test_disabled_record_is_not_served(emulator, dns):
    dns.add_record("example.test", "a", "TXT", "v", status="DISABLE")

    assert dns.records("example.test") == ()
    assert dns.records("example.test", time.monotonic()) == ()


def test_zone_that_is_not_hosted_has_no_records(dns):
    assert dns.records("nowhere.test") == ()


def test_reading_an_unchanged_zone_again_makes_nothing_new(dns):
    dns.add_record("example.test", "a", "TXT", "v")

    assert dns.records("example.test") is dns.records("example.test", time.monotonic())


def test_error_from_the_sdk_carries_code_and_status(emulator):
    with pytest.raises(ServerException) as caught:
        emulator.sdk("alidns", "DescribeDomainRecords", DomainName="nowhere.test")

    assert (caught.value.http_status, caught.value.error_code) == (400, "InvalidDomainName.NoExist")
