"""AliDNS 2015-01-09 (alidns.aliyuncs.com): zones and their records.

Known from ("doc" is an Alibaba help page, "seen" a real answer quoted in a public issue):

    fields, limits, defaults, search rules  doc, the API pages of the nine actions
    DomainRecordDuplicate                   seen: ddns-go#1044; also for an update that changes nothing
    InvalidDomainName.NoExist, .Format      seen: ddns-go#1433, acme.sh#6204
    IncorrectDomainUser                     seen: ddns-go#1393
    QuotaExceeded.TTL                       seen: ddns-go#207, with its text
    DomainRecordNotBelongToUser             seen: openapi-python-sdk#407; for unknown RecordIds and others'
    DomainRecordLocked                      doc, old page of UpdateDomainRecord
    DomainRecordConflict                    doc 34347 and "DNS record conflict rules" say which types; the
                                            text is from the old page of AddDomainRecord
    InvalidParameter                        doc 67787; that RR, Type, Value and Line get it is inferred
    Status of a record, ENABLE              seen in quoted answers; the API pages print Enable
    PageSize of DescribeSubDomainRecords    up to 500, doc of 2025; older pages say 100
    registered domain of a name             inferred: the shortest zone hosted here that the name is in, else
                                            its last two labels; the service has a list of suffixes
    DomainLevel of GetMainDomainName        inferred: the labels before the main domain, plus one
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import Action, ApiError, Parameters, choice, integer, missing, page, required

MAXIMUM_TTL = 86400
MAXIMUM_TXT = 512
# Versions that ended this long ago are forgotten; no name server lags that far behind.
HISTORY_SECONDS = 600

HOST_TYPES = ("CNAME", "NS", "MX")
TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "TXT", "SRV", "CAA", "REDIRECT_URL", "FORWARD_URL")
LINES = {
    "default": "默认",
    "telecom": "中国电信",
    "unicom": "中国联通",
    "mobile": "中国移动",
    "oversea": "境外",
    "edu": "中国教育网",
    "drpeng": "中国鹏博士",
    "btvn": "中国广电网",
}

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True)
class Record:
    """One version of a record: in the zone from `created_at` until `deleted_at` (time.monotonic() moments).

    `rr` is relative to the zone, "@" for the zone itself, as the client wrote it; `name` is the absolute
    owner name, lower case, A-labels, without a trailing dot. A TXT value is bare, without quotes.
    """

    record_id: str
    zone: str
    rr: str
    type: str
    value: str
    ttl: int = 600
    line: str = "default"
    priority: int | None = None
    status: str = "ENABLE"
    locked: bool = False
    created_at: float = 0.0
    deleted_at: float | None = None
    create_timestamp: int = 0
    update_timestamp: int | None = None

    @property
    def name(self) -> str:
        """The absolute owner name."""
        rr = to_ascii(self.rr)
        return self.zone if rr == "@" else f"{rr}.{self.zone}"


@dataclass
class Zone:
    """A hosted domain. `name` in A-labels, `unicode_name` as people write it."""

    name: str
    unicode_name: str
    account: str
    min_ttl: int
    dns_servers: tuple[str, ...]
    domain_id: str
    create_timestamp: int
    live: dict[str, Record] = field(default_factory=dict)
    ended: list[Record] = field(default_factory=list)
    changed_at: float = 0.0
    snapshot: tuple[Record, ...] | None = None


def to_ascii(name: str) -> str:
    """A domain name or RR in lower case A-labels; what has none comes back as it is."""
    if name.isascii():
        return name.lower()
    try:
        return name.lower().encode("idna").decode("ascii").lower()
    except UnicodeError:
        return name.lower()


def to_unicode(name: str) -> str:
    """A domain name as people write it."""
    try:
        return name.encode("ascii").decode("idna")
    except UnicodeError:
        return name


def within(name: str, zone: str) -> bool:
    """Whether a name is the zone's own or below it."""
    return name == zone or name.endswith("." + zone)


class AliDns:
    """The zones of all accounts."""

    PRODUCT, VERSION, RAM_PREFIX, FORBIDDEN_STATUS = "Alidns", "2015-01-09", "alidns", 400

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._zones: dict[str, Zone] = {}
        self._zone_of: dict[str, Zone] = {}
        self.actions: dict[str, Action] = {
            "AddDomainRecord": self._add_domain_record,
            "UpdateDomainRecord": self._update_domain_record,
            "DeleteDomainRecord": self._delete_domain_record,
            "DeleteSubDomainRecords": self._delete_sub_domain_records,
            "DescribeDomainRecords": self._describe_domain_records,
            "DescribeSubDomainRecords": self._describe_sub_domain_records,
            "DescribeDomains": self._describe_domains,
            "DescribeDomainInfo": self._describe_domain_info,
            "GetMainDomainName": self._get_main_domain_name,
        }

    def host(self, parameters: Parameters) -> str:
        """The HostId of an answer."""
        return "alidns.aliyuncs.com"

    # The cloud's own side: the lab fills it, name servers read it.

    def add_zone(
        self,
        name: str,
        account: str = "learner",
        min_ttl: int = 600,
        dns_servers: Sequence[str] = ("ns1.lab.test", "ns2.lab.test"),
    ) -> None:
        """Host a domain for an account."""
        ascii_name = to_ascii(name)
        with self._lock:
            self._zones[ascii_name] = Zone(
                ascii_name,
                to_unicode(ascii_name),
                account,
                min_ttl,
                tuple(dns_servers),
                secrets.token_hex(16),
                now_milliseconds(),
                changed_at=time.monotonic(),
            )

    def add_record(
        self,
        zone: str,
        rr: str,
        type: str,
        value: str,
        ttl: int = 600,
        line: str = "default",
        locked: bool = False,
        priority: int | None = None,
        status: str = "ENABLE",
    ) -> str:
        """Put a record into a zone without any of the API's checks, and give its RecordId."""
        with self._lock:
            return self._insert(
                self._zones[to_ascii(zone)],
                Record(
                    new_record_id(),
                    to_ascii(zone),
                    rr,
                    type,
                    value,
                    ttl,
                    line,
                    priority,
                    status,
                    locked,
                ),
            )

    def remove_record(self, record_id: str) -> None:
        """Take a record out of its zone without any of the API's checks; it may be gone already."""
        with self._lock:
            zone = self._zone_of.get(record_id)
            if zone is not None:
                self._end(zone, zone.live[record_id])

    def zone_names(self) -> list[str]:
        """Every zone of every account, in A-labels."""
        with self._lock:
            return list(self._zones)

    def records(self, zone: str, at: float | None = None) -> tuple[Record, ...]:
        """The enabled records in a zone at a time.monotonic() moment, by default now."""
        with self._lock:
            hosted = self._zones.get(to_ascii(zone))
            if hosted is None:
                return ()
            if at is None or at >= hosted.changed_at:
                if hosted.snapshot is None:
                    hosted.snapshot = tuple(r for r in hosted.live.values() if r.status == "ENABLE")
                return hosted.snapshot
            versions = [*hosted.ended, *hosted.live.values()]
        return tuple(
            version
            for version in versions
            if version.status == "ENABLE"
            and version.created_at <= at
            and (version.deleted_at is None or at < version.deleted_at)
        )

    def ended(self, zone: str) -> tuple[Record, ...]:
        """The records, and older versions of records, that a zone had in the last ten minutes and has no more."""
        with self._lock:
            hosted = self._zones.get(to_ascii(zone))
            return tuple(hosted.ended) if hosted else ()

    # Changes: every version keeps the time it began and ended.

    def _insert(self, zone: Zone, record: Record, moment: float | None = None) -> str:
        moment = time.monotonic() if moment is None else moment
        record = replace(
            record, created_at=moment, create_timestamp=record.create_timestamp or now_milliseconds()
        )
        zone.live[record.record_id] = record
        self._zone_of[record.record_id] = zone
        self._touch(zone, moment)
        return record.record_id

    def _end(self, zone: Zone, record: Record) -> float:
        moment = time.monotonic()
        del zone.live[record.record_id]
        del self._zone_of[record.record_id]
        zone.ended.append(replace(record, deleted_at=moment))
        self._touch(zone, moment)
        return moment

    def _touch(self, zone: Zone, moment: float) -> None:
        zone.changed_at = moment
        zone.snapshot = None
        keep_from = moment - HISTORY_SECONDS
        if zone.ended and (zone.ended[0].deleted_at or 0) < keep_from:
            zone.ended = [r for r in zone.ended if (r.deleted_at or 0) >= keep_from]

    # Lookups with the API's errors.

    def _zone(self, account: str, domain_name: str) -> Zone:
        name = to_ascii(domain_name)
        labels = name.split(".")
        if len(labels) < 2 or len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
            raise ApiError("InvalidDomainName.Format", "Invalid domain name.")
        zone = self._zones.get(name)
        if zone is None:
            raise ApiError(
                "InvalidDomainName.NoExist",
                "The specified domain name does not exist. Refresh the page and try again.",
            )
        if zone.account != account:
            raise ApiError(
                "IncorrectDomainUser",
                "The domain name belongs to other users. Transfer the domain name to the current user "
                "and then try the binding and setting actions.",
            )
        return zone

    def _record(self, account: str, record_id: str) -> tuple[Zone, Record]:
        zone = self._zone_of.get(record_id)
        if zone is None or zone.account != account:
            raise ApiError("DomainRecordNotBelongToUser", "The DNS record does not exist in your account.")
        record = zone.live[record_id]
        return zone, record

    def _changeable_record(self, account: str, record_id: str) -> tuple[Zone, Record]:
        zone, record = self._record(account, record_id)
        if record.locked:
            raise ApiError("DomainRecordLocked", "The domain record has been locked.")
        return zone, record

    def _main_domain(self, name: str) -> str:
        """The registered domain of a name."""
        hosted = [zone for zone in self._zones if within(name, zone)]
        return min(hosted, key=len) if hosted else ".".join(name.split(".")[-2:])

    # Actions.

    def _add_domain_record(self, account: str, parameters: Parameters) -> dict[str, Any]:
        domain_name = required(parameters, "DomainName")
        for name in ("RR", "Type", "Value"):
            required(parameters, name)
        with self._lock:
            zone = self._zone(account, domain_name)
            record = read_record(zone, parameters)
            check_against_others(zone, record)
            return {"RecordId": self._insert(zone, record)}

    def _update_domain_record(self, account: str, parameters: Parameters) -> dict[str, Any]:
        record_id = required(parameters, "RecordId")
        for name in ("RR", "Type", "Value"):
            required(parameters, name)
        with self._lock:
            zone, old = self._changeable_record(account, record_id)
            new = replace(
                read_record(zone, parameters),
                record_id=record_id,
                status=old.status,
                create_timestamp=old.create_timestamp,
                update_timestamp=now_milliseconds(),
            )
            # The record it replaces may not conflict with it, but the same content again is a duplicate.
            if same_content(old, new) and (old.ttl, old.priority) == (new.ttl, new.priority):
                raise duplicate()
            check_against_others(zone, new)
            # The new version begins when the old one ends: no moment is without either.
            return {"RecordId": self._insert(zone, new, self._end(zone, old))}

    def _delete_domain_record(self, account: str, parameters: Parameters) -> dict[str, Any]:
        record_id = required(parameters, "RecordId")
        with self._lock:
            self._end(*self._changeable_record(account, record_id))
        return {"RecordId": record_id}

    def _delete_sub_domain_records(self, account: str, parameters: Parameters) -> dict[str, Any]:
        domain_name = required(parameters, "DomainName")
        rr = required(parameters, "RR")
        with self._lock:
            zone = self._zone(account, domain_name)
            chosen_type = record_type(parameters)
            doomed = [
                record
                for record in zone.live.values()
                if record.rr.lower() == rr.lower()
                and chosen_type in (None, record.type)
                and not record.locked
            ]
            for record in doomed:
                self._end(zone, record)
        return {"RR": rr, "TotalCount": str(len(doomed))}

    def _describe_domain_records(self, account: str, parameters: Parameters) -> dict[str, Any]:
        domain_name = required(parameters, "DomainName")
        matches = read_search(parameters)
        newest_first = choice(parameters, "Direction", ("DESC", "ASC")) != "ASC"
        with self._lock:
            zone = self._zone(account, domain_name)
            found = [record for record in zone.live.values() if matches(record)]
        found.sort(key=lambda record: (record.create_timestamp, record.created_at), reverse=newest_first)
        fields, shown = page(found, parameters, 20, 500)
        return {**fields, "DomainRecords": {"Record": [describe(zone, record) for record in shown]}}

    def _describe_sub_domain_records(self, account: str, parameters: Parameters) -> dict[str, Any]:
        sub_domain = to_ascii(required(parameters, "SubDomain"))
        chosen_type = record_type(parameters)
        line = parameters.get("Line", "")
        with self._lock:
            zone = self._zone(account, parameters.get("DomainName") or self._main_domain(sub_domain))
            if not within(sub_domain, zone.name):
                raise invalid_parameter("SubDomain")
            found = [
                record
                for record in zone.live.values()
                if record.name == sub_domain
                and chosen_type in (None, record.type)
                and line in ("", record.line)
            ]
        found.reverse()
        fields, shown = page(found, parameters, 20, 500)
        return {**fields, "DomainRecords": {"Record": [describe(zone, record) for record in shown]}}

    def _describe_domains(self, account: str, parameters: Parameters) -> dict[str, Any]:
        mode = choice(parameters, "SearchMode", ("LIKE", "EXACT"))
        keyword = parameters.get("KeyWord", "").lower()
        with self._lock:
            own = [zone for zone in self._zones.values() if zone.account == account]
            if keyword:
                own = [
                    zone
                    for zone in own
                    if keyword in (zone.name, zone.unicode_name)
                    or (mode != "EXACT" and (keyword in zone.name or keyword in zone.unicode_name))
                ]
            own.reverse()
            fields, shown = page(own, parameters, 20, 100)
            return {**fields, "Domains": {"Domain": [describe_zone(zone) for zone in shown]}}

    def _describe_domain_info(self, account: str, parameters: Parameters) -> dict[str, Any]:
        domain_name = required(parameters, "DomainName")
        detailed = choice(parameters, "NeedDetailAttributes", ("true", "false")) == "true"
        with self._lock:
            zone = self._zone(account, domain_name)
            answer = describe_zone(zone)
        if detailed:
            answer["MinTtl"] = zone.min_ttl
            answer["AvailableTtls"] = {
                "AvailableTtl": [
                    ttl for ttl in (1, 5, 10, 60, 120, 600, 1800, 3600, 43200, 86400) if ttl >= zone.min_ttl
                ]
            }
            answer["RecordLines"] = {
                "RecordLine": [
                    {"LineCode": code, "LineName": name, "LineDisplayName": name}
                    for code, name in LINES.items()
                ]
            }
        return answer

    def _get_main_domain_name(self, account: str, parameters: Parameters) -> dict[str, Any]:
        text = required(parameters, "InputString")
        name = to_ascii(text)
        labels = name.split(".")
        if len(text) > 128 or len(labels) < 2 or not all(HOST_LABEL.fullmatch(label) for label in labels):
            raise ApiError("InvalidDomainName.Format", "Invalid domain name.")
        with self._lock:
            domain = self._main_domain(name)
        rr = name[: -len(domain) - 1] or "@"
        return {"DomainName": domain, "RR": rr, "DomainLevel": 1 if rr == "@" else 2 + rr.count(".")}


def now_milliseconds() -> int:
    return int(time.time() * 1000)


def new_record_id() -> str:
    return str(10**17 + secrets.randbelow(9 * 10**17))


def invalid_parameter(name: str) -> ApiError:
    return ApiError("InvalidParameter", f'The specified value of parameter "{name}" is not valid.')


def duplicate() -> ApiError:
    return ApiError("DomainRecordDuplicate", "The DNS record already exists.")


def record_type(parameters: Parameters) -> str | None:
    """The Type parameter in upper case, if there is one."""
    text = parameters.get("Type", "").upper()
    if text and text not in TYPES:
        raise invalid_parameter("Type")
    return text or None


def read_record(zone: Zone, parameters: Parameters) -> Record:
    """A new record of the zone from a request's parameters, checked as the service does."""
    type_ = record_type(parameters) or ""
    rr = parameters["RR"]
    check_rr(zone, rr)
    value = read_value(type_, parameters["Value"])
    ttl = integer(parameters, "TTL", max(600, zone.min_ttl), 0, 2**31 - 1)
    if not zone.min_ttl <= ttl <= MAXIMUM_TTL:
        raise ApiError(
            "QuotaExceeded.TTL",
            "The specified TTL is invalid. A valid TTL must be in the range of "
            f"{zone.min_ttl} to {MAXIMUM_TTL}.",
        )
    line = parameters.get("Line") or "default"
    if line not in LINES:
        raise invalid_parameter("Line")
    priority = None
    if type_ == "MX":
        if not parameters.get("Priority"):
            raise missing("Priority")
        priority = integer(parameters, "Priority", 10, 1, 50)
    return Record(new_record_id(), zone.name, rr, type_, value, ttl, line, priority)


def check_rr(zone: Zone, rr: str) -> None:
    """ "@", or labels of letters, digits, - and _, of which the first may be a whole "*"."""
    ascii_rr = to_ascii(rr)
    if ascii_rr == "@":
        return
    labels = ascii_rr.split(".")
    if labels[0] == "*":
        labels = labels[1:]
    if not all(HOST_LABEL.fullmatch(label) for label in labels) or len(f"{ascii_rr}.{zone.name}") > 253:
        raise invalid_parameter("RR")


def read_value(type_: str, text: str) -> str:
    """A record's value, checked against its type; host names come back without a trailing dot."""
    value = text.strip()
    if type_ == "TXT":
        ok = 0 < len(text) <= MAXIMUM_TXT and text.isascii() and text.isprintable()
        value = text
    elif type_ in ("A", "AAAA"):
        try:
            ok = ipaddress.ip_address(value).version == (4 if type_ == "A" else 6)
        except ValueError:
            ok = False
    elif type_ in HOST_TYPES:
        value = value.removesuffix(".")
        ok = is_host(value)
    elif type_ == "SRV":
        parts = value.split(" ")
        ok = (
            len(parts) == 4
            and all(is_number(part, 65535) for part in parts[:3])
            and is_host(parts[3].removesuffix("."))
        )
    elif type_ == "CAA":
        ok = re.fullmatch(r'\d{1,3} (issue|issuewild|iodef) "[!-~ ]*"', value) is not None and is_number(
            value.split(" ")[0], 255
        )
    else:
        ok = re.fullmatch(r"https?://[!-~]+", value) is not None
    if not ok:
        raise invalid_parameter("Value")
    return value


def is_number(text: str, maximum: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= maximum


def is_host(text: str) -> bool:
    """A host name as a record's value: at least one label, underscores allowed."""
    name = to_ascii(text)
    return 0 < len(name) <= 253 and all(HOST_LABEL.fullmatch(label) for label in name.split("."))


def same_content(one: Record, other: Record) -> bool:
    """Whether two records are the same to AliDNS: RR, type, value and line."""
    values = (one.value, other.value) if one.type == "TXT" else (one.value.lower(), other.value.lower())
    return (
        one.rr.lower() == other.rr.lower()
        and (one.type, one.line) == (other.type, other.line)
        and values[0] == values[1]
    )


def check_against_others(zone: Zone, record: Record) -> None:
    """Refuse a record that is there already or that cannot stand beside another one."""
    for other in zone.live.values():
        if other.record_id == record.record_id:
            continue
        if same_content(record, other):
            raise duplicate()
        if other.rr.lower() == record.rr.lower() and other.line == record.line and conflict(record, other):
            raise ApiError("DomainRecordConflict", "The domain record is conflict with other records.")


def conflict(one: Record, other: Record) -> bool:
    """Whether two records of one name and line exclude each other."""
    types = {"URL" if type_.endswith("_URL") else type_ for type_ in (one.type, other.type)}
    at_zone = one.rr == "@"
    if len(types) == 1:
        return types <= {"CNAME", "URL"}
    if "NS" in types:
        return not at_zone
    if "CNAME" in types:
        return not (at_zone and types & {"MX", "TXT"})
    return "URL" in types and bool(types & {"A", "AAAA"})


def read_search(parameters: Parameters) -> Callable[[Record], bool]:
    """The search parameters of DescribeDomainRecords: which records they ask for."""
    mode = choice(parameters, "SearchMode", ("LIKE", "EXACT", "ADVANCED"))
    keyword = parameters.get("KeyWord", "").lower()
    rr, value = parameters.get("RRKeyWord", "").lower(), parameters.get("ValueKeyWord", "").lower()
    line = parameters.get("Line", "")
    types = {record_type(parameters), parameters.get("TypeKeyWord", "").upper() or None} - {None}
    status = choice(parameters, "Status", ("ENABLE", "DISABLE"))

    if mode == "EXACT" and keyword:
        return lambda record: keyword in (record.rr.lower(), record.value.lower())
    if mode in ("LIKE", "EXACT") or (mode is None and keyword):
        return lambda record: keyword in record.rr.lower() or keyword in record.value.lower()
    return lambda record: (
        rr in record.rr.lower()
        and value in record.value.lower()
        and types <= {record.type}
        and line in ("", record.line)
        and status in (None, record.status)
    )


def describe(zone: Zone, record: Record) -> dict[str, Any]:
    """A record as the Describe actions show it."""
    answer: dict[str, Any] = {
        "DomainName": zone.unicode_name,
        "RecordId": record.record_id,
        "RR": record.rr,
        "Type": record.type,
        "Value": record.value,
        "Line": record.line,
        "TTL": record.ttl,
        "Status": record.status,
        "Locked": record.locked,
        "Weight": 1,
        "CreateTimestamp": record.create_timestamp,
    }
    if record.priority is not None:
        answer["Priority"] = record.priority
    if record.update_timestamp is not None:
        answer["UpdateTimestamp"] = record.update_timestamp
    return answer


def describe_zone(zone: Zone) -> dict[str, Any]:
    """A zone as DescribeDomains and DescribeDomainInfo show it."""
    return {
        "DomainId": zone.domain_id,
        "DomainName": zone.unicode_name,
        "PunyCode": zone.name,
        "AliDomain": True,
        "VersionCode": "mianfei",
        "VersionName": "Alibaba Cloud DNS",
        "GroupId": "",
        "GroupName": "",
        "RecordCount": len(zone.live),
        "DnsServers": {"DnsServer": list(zone.dns_servers)},
        "CreateTime": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(zone.create_timestamp / 1000)),
        "CreateTimestamp": zone.create_timestamp,
    }
