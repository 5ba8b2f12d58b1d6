"""Prove control of every name: dns-01 through Alibaba Cloud DNS, or by hand.

Call    POST authorization, challenge, order; Alidns AddDomainRecord, DeleteDomainRecord
RFC     8555 sections 7.5, 7.5.1, 8.1, 8.4
Reads   state/pending/order.json, state/account.json; acme.ini: [dns], [alibaba]
Writes  state/pending/dns_records.json (while its records exist)
Run     python 05_dns_challenge.py
Lab     docs/labs/05.md, 35 minutes; part 5
Next    06_finalize.py
"""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aliyunsdkalidns.request.v20150109.AddDomainRecordRequest import AddDomainRecordRequest
from aliyunsdkalidns.request.v20150109.DeleteDomainRecordRequest import DeleteDomainRecordRequest
from aliyunsdkalidns.request.v20150109.DescribeDomainRecordsRequest import DescribeDomainRecordsRequest
from aliyunsdkalidns.request.v20150109.DescribeDomainsRequest import DescribeDomainsRequest

from common import acme, alibaba, config, dns, jws, names, show
from common.failure import Failure, Usage
from common.journal import Entry, Journal

JOURNAL = "pending/dns_records.json"
AT_ONCE = 10  # calls in flight
PACE = 0.02  # seconds between two more changes: Alibaba Cloud DNS takes 60 a second
AT_ONCE_AT_CA = 4  # requests in flight; each beyond the first begins with a handshake and a nonce of its own
VALIDATION_TIMEOUT = 300  # seconds for the CA to look at every record
# What DeleteDomainRecord says when there is nothing to delete any more.
ALREADY_GONE = ("DomainRecordNotBelongToUser", "InvalidRecordId.NotFound", "DomainRecordNotExist")


@dataclass(frozen=True)
class Challenge:
    """One dns-01 challenge: where the CA takes the answer, and what it wants to see at which name."""

    domain: str
    url: str
    name: str
    value: str


def dns_txt_value(token: str, thumbprint: str) -> str:
    """The TXT value that answers a dns-01 challenge (RFC 8555 sections 8.1 and 8.4).

    token: base64url text from the CA; thumbprint: of the account key (RFC 7638)
    """
    key_authorization = f"{token}.{thumbprint}"
    return jws.b64url(hashlib.sha256(key_authorization.encode("ascii")).digest())


def is_token(value: Any) -> bool:
    """Whether this can be a challenge's token: base64url text (RFC 8555 section 8.1)."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+", value) is not None


def is_name(value: Any) -> bool:
    """Whether this is a DNS name as we would order a certificate for it."""
    try:
        return isinstance(value, str) and names.dns_name(value) == value
    except ValueError:
        return False


def side_by_side(ask: Callable[[Any, bool], acme.Answer], items: Sequence[Any]) -> list[acme.Answer]:
    """ask(item, brief) for each item, some at once. The first is shown whole; the others are alike."""
    # A second connection takes three round trips before it is of use: for a few requests, one is as quick.
    with ThreadPoolExecutor(min(AT_ONCE_AT_CA, len(items) // 4 + 1)) as pool:
        return list(pool.map(ask, items, [number > 0 for number in range(len(items))]))


def pending_challenges(ca: acme.Client, authorization_urls: list[str]) -> list[Challenge]:
    """The dns-01 challenge of every authorization that is not yet valid."""
    thumbprint = jws.thumbprint(ca.key)
    answers = side_by_side(ca.post_as_get, authorization_urls)
    authorizations = [answer.object(status=str, identifier=dict, challenges=list) for answer in answers]
    challenges: list[Challenge] = []
    for authorization in authorizations:
        domain = authorization["identifier"].get("value")
        if not is_name(domain):
            raise Failure(
                "the CA's answer has no usable identifier", "run it again; if it stays so, tell the CA"
            )
        if authorization["status"] == "valid":
            # The CA remembers an earlier proof. Nothing to do for this name.
            show.facts(valid=f"{domain}, since an earlier order and until {authorization.get('expires')}")
            continue
        # By type, never by position; kinds we do not know, and challenges without a token, are not for us.
        offered = [c for c in authorization["challenges"] if isinstance(c, dict)]
        fitting = [
            c for c in offered if c.get("type") == "dns-01" and c.get("url") and is_token(c.get("token"))
        ]
        if not fitting:
            kinds = ", ".join(str(c.get("type")) for c in offered)
            raise Failure(
                f"{domain}: the CA offers no dns-01 challenge that can be used, but {kinds or 'none'}",
                "use another CA",
            )
        # A wildcard is proven at the name below it: section 7.1.4 takes the "*." away.
        value = dns_txt_value(fitting[0]["token"], thumbprint)
        if not challenges:
            show.facts(name=f"_acme-challenge.{domain}", token=fitting[0]["token"])
            show.facts(thumbprint=f"{thumbprint} (of the account key)")
            show.facts(value=f"{value} = base64url(SHA-256(token.thumbprint))")
        challenges.append(Challenge(domain, fitting[0]["url"], f"_acme-challenge.{domain}", value))
    return challenges


def respond(ca: acme.Client, challenge: Challenge, brief: bool = False) -> acme.Answer:
    """Tell the CA that it may look: an empty object, for the CA has all it needs (section 7.5.1)."""
    try:
        # Once more where no answer came: the CA may be looking, and to withdraw the record would fail the proof.
        return ca.post(challenge.url, {}, brief=brief, repeatable=True)
    except acme.Problem as problem:
        if problem.type != "malformed":
            raise
        # It has heard that already, and looked. What it saw is in the challenge, and in the order.
        return ca.post_as_get(challenge.url, brief)


def my_zones(cloud: alibaba.Client) -> list[str]:
    """The domains that this account has in Alibaba Cloud DNS, from every page of DescribeDomains."""
    zones: list[str] = []
    for page in range(1, 1000):
        answer = cloud.call(DescribeDomainsRequest, {"PageNumber": str(page), "PageSize": "100"}, brief=True)
        domains = answer.objects("Domains", "Domain")
        # An internationalised domain is known to DNS, and to the CA, by its A-label.
        zones += [domain.text("PunyCode", "") or domain.text("DomainName") for domain in domains]
        if not domains or len(zones) >= answer.number("TotalCount"):
            break
    return zones


def add_txt_record(cloud: alibaba.Client, zone: str, rr: str, value: str, brief: bool = False) -> str:
    """Add one more TXT value at a name, beside what is there; returns the RecordId.

    rr: the name within the zone, "_acme-challenge.www", or "@" for the zone itself
    """
    parameters = {"DomainName": zone, "RR": rr, "Type": "TXT", "Value": value}
    return cloud.call(AddDomainRecordRequest, parameters, brief).text("RecordId")


def find_txt_record(cloud: alibaba.Client, zone: str, rr: str, value: str) -> str | None:
    """The RecordId of a TXT record with exactly this name and value."""
    parameters = {
        "DomainName": zone,
        "RRKeyWord": rr,
        "TypeKeyWord": "TXT",
        "ValueKeyWord": value,
        "PageSize": "500",
    }
    records = cloud.call(DescribeDomainRecordsRequest, parameters).objects("DomainRecords", "Record")
    # The service searches loosely: "_acme-challenge" finds "_acme-challenge.www" too.
    return next((r.text("RecordId") for r in records if (r["RR"], r["Value"]) == (rr, value)), None)


def delete_txt_record(cloud: alibaba.Client, record_id: str, brief: bool = False) -> None:
    """Delete one record, by the id that AddDomainRecord gave. One that is gone already is fine."""
    try:
        cloud.call(DeleteDomainRecordRequest, {"RecordId": record_id}, brief)
    except alibaba.ApiError as error:
        if error.code not in ALREADY_GONE:
            raise


class Publisher:
    """Puts TXT records up, and takes back exactly those: the ones in its journal."""

    def __init__(self, settings: config.Settings) -> None:
        self.cloud = alibaba.connect(settings, "alidns")
        self.journal = Journal(settings.state, JOURNAL, "05_dns_challenge.py", "zone", "rr", "value")
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.turn, self.turns = 0.0, threading.Lock()

    def publish(self, wanted: dict[str, set[str]]) -> dict[str, str]:
        """Add every value of every name, all at once; returns the zone of each name."""
        zones = my_zones(self.cloud)
        show.facts(domains=f"{len(zones)} in this account")
        zone_of = {}
        for name in wanted:
            # The longest of our own domains: right for example.com.cn, and for a sub-domain delegated to itself.
            zone = dns.longest_zone(name, zones)
            if not zone:
                raise Usage(
                    f"none of this account's {len(zones)} domains in Alibaba Cloud DNS holds {name}",
                    "add the domain there, use a key of its account, or set [dns] provider = manual",
                )
            zone_of[name] = zone
            show.facts(name=f"{name} in zone {zone}")
        pairs = [(name, value) for name, values in wanted.items() for value in sorted(values)]
        adding = [
            self.pool.submit(self._add, zone_of[n], n, v, brief=i > 0) for i, (n, v) in enumerate(pairs)
        ]
        for addition in adding:
            addition.result()
        return zone_of

    def clean_up(self) -> Failure | None:
        """Delete what the journal holds, this run's records and an interrupted run's; what stays, stays in it."""
        # Ctrl-C may have come in the middle of the additions: those under way end first, the others never begin.
        self.pool.shutdown(cancel_futures=True)
        entries = self.journal.entries()
        if not entries:
            return None
        show.step("clean-up", "Alidns DeleteDomainRecord")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            deleting = [pool.submit(self._delete, entry, brief=i > 0) for i, entry in enumerate(entries)]
        failures = [error for deletion in deleting if (error := deletion.exception())]
        if not failures:
            return None
        left = f"{len(failures)} TXT records are still in the zone: {failures[0]}"
        first = getattr(failures[0], "remedy", "see above")
        return Failure(left, f"{first}; then run 05_dns_challenge.py again: its journal knows them")

    def _await_turn(self) -> None:
        """Wait until one more change is not too many: the first ones go at once, then one each PACE."""
        with self.turns:
            now = time.monotonic()
            self.turn = turn = max(self.turn + PACE, now - AT_ONCE * PACE)
        time.sleep(max(0.0, turn - now))

    def _add(self, zone: str, name: str, value: str, brief: bool) -> None:
        rr = name.removesuffix(zone).rstrip(".") or "@"
        self._await_turn()
        entry, begun_before = self.journal.begin(zone=zone, rr=rr, value=value)
        try:
            self.journal.complete(entry, record_id=add_txt_record(self.cloud, zone, rr, value, brief))
        except alibaba.ApiError as error:
            duplicate = error.code == "DomainRecordDuplicate"
            # It is ours if an earlier run, or an earlier try of this call, made it before it could hear the answer.
            # Else it is somebody's record with this very value: it serves, and it is not ours to delete.
            if not (error.may_have_run or (duplicate and begun_before)):
                self.journal.end(entry)
            if not duplicate:
                raise

    def _delete(self, entry: Entry, brief: bool) -> None:
        zone, rr, value = entry["zone"], entry["rr"], entry["value"]
        record_id = entry.get("record_id") or find_txt_record(self.cloud, zone, rr, value)
        if record_id:
            self._await_turn()
            delete_txt_record(self.cloud, record_id, brief)
        self.journal.end(entry)


@contextlib.contextmanager
def records_taken_back(publisher: Publisher | None) -> Iterator[None]:
    """Clean up on success, on failure and on Ctrl-C; the first error is the one that is told."""
    try:
        yield
    except BaseException:
        if publisher and (failure := publisher.clean_up()):
            show.warn(f"{failure.what}\n{failure.remedy}")
        raise
    if publisher and (failure := publisher.clean_up()):
        raise failure


def prove(
    ca: acme.Client,
    settings: config.Settings,
    order_url: str,
    order: dict[str, Any],
    publisher: Publisher | None,
) -> None:
    """From the order's authorizations to an order that is ready."""
    show.step("authorizations", "RFC 8555 section 7.5")
    challenges = pending_challenges(ca, order["authorizations"])

    if challenges:
        show.step("TXT records", "RFC 8555 section 8.4")
        name_servers = dns.NameServers(settings.dns.nameservers)
        # A CNAME at the challenge's name hands the proof over to another zone: the record goes where it points.
        names = {challenge.name for challenge in challenges}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            target_of = dict(zip(names, pool.map(name_servers.follow_cname, names), strict=True))
        wanted: dict[str, set[str]] = {}
        for challenge in challenges:
            # example.com and *.example.com are proven at one name, with two values: both must be there.
            wanted.setdefault(target_of[challenge.name], set()).add(challenge.value)
        if publisher:
            zone_of = publisher.publish(wanted)
            servers = {name: name_servers.for_zone(zone_of[name]) for name in wanted}
        else:
            for name, values in wanted.items():
                show.ask("\n".join(f'    add  {name}.  TXT  "{value}"' for value in sorted(values)))
            servers = {name: name_servers.for_name(name) for name in wanted}
        # The CA looks once. A name server that has not heard of the record by then would fail the proof for good.
        dns.wait_until_visible(wanted, servers, settings.dns.timeout or (300 if publisher else 3600))

    show.step("challenges", "RFC 8555 section 7.5.1")
    answers = side_by_side(lambda challenge, brief: respond(ca, challenge, brief), challenges)
    # Some CAs look before they answer.
    if any(isinstance(answer.body, dict) and answer.body.get("status") == "invalid" for answer in answers):
        # Some leave such an order "pending", and then 04_new_order.py would go on with it for ever.
        settings.state.remove("pending/order.json")
        raise why_invalid(ca, order)

    show.step("order: pending, until every name is valid", "RFC 8555 section 7.1.6")
    # One question about the order stands for one about each authorization.
    answer = ca.poll(
        order_url, lambda body: body["status"] != "pending", "CA to validate", VALIDATION_TIMEOUT
    )
    if answer.body["status"] == "invalid":
        raise why_invalid(ca, answer.body)


def why_invalid(ca: acme.Client, order: dict[str, Any]) -> Failure:
    """The CA's reason for every name that it refused, from the authorizations' challenges."""
    lines, kind = ["the order is invalid:"], ""
    urls = order.get("authorizations")
    for url in urls if isinstance(urls, list) else []:
        authorization = ca.post_as_get(url, brief=True).object(status=str, identifier=dict, challenges=list)
        for challenge in authorization["challenges"]:
            if isinstance(challenge, dict) and isinstance(challenge.get("error"), dict):
                error = challenge["error"]
                kind = str(error.get("type", "")).rpartition(":")[2]
                star = "*." if authorization.get("wildcard") else ""
                name = f"{star}{authorization['identifier'].get('value')}"
                lines.append(f"  {name}: {kind} {acme.describe(error)}")
    if len(lines) == 1 and isinstance(order.get("error"), dict):
        kind = str(order["error"].get("type", "")).rpartition(":")[2]
        lines.append(f"  {kind} {acme.describe(order['error'])}")
    if len(lines) == 1:
        lines.append("  the CA gives no reason: it may be too old, or its authorizations may be")
    # Said of a challenge, "unauthorized" is about the record and not about the account.
    remedy = acme.REMEDIES.get("incorrectResponse" if kind == "unauthorized" else kind, "mend that")
    return Failure("\n".join(lines), f"{remedy}; then run 04_new_order.py and this again")


def main(settings: config.Settings, ca: acme.Client | None = None) -> None:
    state, alidns = settings.state, settings.dns.provider == "alidns"
    abandoned = state.exists(JOURNAL) and not (alidns and state.exists("pending/order.json"))
    # Records of an interrupted run, whose order is no more: nothing below would take them back.
    if abandoned and (failure := Publisher(settings).clean_up()):
        raise failure
    saved = state.read_json("pending/order.json", "04_new_order.py", order_url=str)
    ca = ca or acme.account_client(settings)
    publisher = Publisher(settings) if alidns else None
    with records_taken_back(publisher):
        show.step("order", "RFC 8555 section 7.1.3")
        order = ca.post_as_get(saved["order_url"]).object(status=str, authorizations=list)
        if order["status"] == "pending":
            prove(ca, settings, saved["order_url"], order, publisher)
        elif order["status"] == "invalid":
            raise why_invalid(ca, order)
        else:
            show.facts(order=f"is {order['status']}: nothing to prove")
    if not alidns:
        show.say("the TXT records that you added for this have done their work: you may delete them")
    show.result(saved["order_url"])
    show.next_step("06_finalize.py")


if __name__ == "__main__":
    config.run(main, __doc__)
