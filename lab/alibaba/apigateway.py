"""API Gateway, "CloudAPI" 2016-07-14 (apigateway.<region>.aliyuncs.com): groups, domains, certificates.

Known from ("doc" is an Alibaba help page, "seen": quoted in public source or an issue):

    fields, limits, defaults, BINDING       doc, the API pages of the six actions
    InvalidGroupId.NotFound                 doc, page of DeleteDomainCertificate, for that action
    NotFoundApiGroup                        seen: what terraform-provider-alicloud looks for elsewhere
    NotFound{}, Invalid{}, Missing{}, Repeated{} with their texts and status 400
                                            doc "error codes for management and control API operations"
    NotFoundDomain                          inferred from the pattern
    InvalidCertificateName                  inferred; rule of ROS-CDK#48: 4-50 characters, letter first
    InvalidCertificateBody                  nearest pattern: malformed, expired, or for other names
    InvalidCertificatePrivateKey            nearest pattern: malformed, or of another certificate
    the region that is asked                the service knows it from its host name, here RegionId tells it
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from . import certificates
from .certificates import ServerCertificate
from .errors import Action, ApiError, Parameters, choice, page, required

CERTIFICATE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{3,49}")
REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")


@dataclass(frozen=True)
class Certificate:
    """A certificate as it is bound to a domain."""

    certificate_id: str
    name: str
    server: ServerCertificate


@dataclass
class Domain:
    """A custom domain of a group; `pending` takes over from `active` at `ready_at` (time.monotonic())."""

    name: str
    stage: str = ""
    kind: str = "INTERNET"
    redirects: bool = False
    active: Certificate | None = None
    pending: Certificate | None = None
    ready_at: float = 0.0

    def settle(self) -> Domain:
        """Let a finished installation take effect."""
        if self.pending is not None and time.monotonic() >= self.ready_at:
            self.active, self.pending = self.pending, None
        return self


@dataclass
class Group:
    """An API group."""

    group_id: str
    name: str
    account: str
    region: str
    created: float
    domains: dict[str, Domain] = field(default_factory=dict)

    @property
    def sub_domain(self) -> str:
        return f"{self.group_id}-{self.region}.alicloudapi.com"


class ApiGateway:
    """The API groups of all accounts and regions."""

    PRODUCT, VERSION, RAM_PREFIX, FORBIDDEN_STATUS = "CloudAPI", "2016-07-14", "apigateway", 403

    def __init__(self) -> None:
        self.installing_seconds = 0.0
        self._lock = threading.RLock()
        self._groups: dict[str, Group] = {}
        self.actions: dict[str, Action] = {
            "SetDomainCertificate": self._set_certificate,
            "DescribeDomain": self._describe_domain,
            "SetDomain": self._set_domain,
            "DeleteDomainCertificate": self._delete_certificate,
            "DescribeApiGroups": self._describe_groups,
            "DescribeApiGroup": self._describe_group,
        }

    def host(self, parameters: Parameters) -> str:
        """The HostId of an answer."""
        return f"apigateway.{region_of(parameters)}.aliyuncs.com"

    # The cloud's own side: the lab fills it, edges read it.

    def add_group(self, name: str, account: str = "learner", region: str = "cn-hangzhou") -> str:
        """Make an API group and give its GroupId."""
        group_id = secrets.token_hex(16)
        with self._lock:
            self._groups[group_id] = Group(group_id, name, account, region, time.time())
        return group_id

    def bind_domain(self, group_id: str, domain_name: str) -> None:
        """Bind a custom domain to a group."""
        with self._lock:
            self._groups[group_id].domains[domain_name.lower()] = Domain(domain_name.lower())

    def domain_names(self) -> list[str]:
        """Every domain that is bound to a group."""
        with self._lock:
            return [name for group in self._groups.values() for name in group.domains]

    def certificate_for(self, server_name: str) -> tuple[str, str] | None:
        """(chain, private key), both PEM, that an edge serves now for this SNI."""
        name = server_name.lower().rstrip(".")
        with self._lock:
            for group in self._groups.values():
                domain = group.domains.get(name)
                active = domain.settle().active if domain else None
                if active is not None:
                    return active.server.chain_pem, active.server.private_key_pem
        return None

    # Actions.

    def _group(self, account: str, parameters: Parameters, code: str = "NotFoundApiGroup") -> Group:
        group = self._groups.get(required(parameters, "GroupId"))
        if group is None or group.account != account or group.region != region_of(parameters):
            raise ApiError(code, "Cannot find resource according to your specified ApiGroup.")
        return group

    def _domain(
        self, account: str, parameters: Parameters, code: str = "NotFoundApiGroup"
    ) -> tuple[Group, Domain]:
        name = required(parameters, "DomainName").lower()
        group = self._group(account, parameters, code)
        domain = group.domains.get(name)
        if domain is None:
            raise ApiError("NotFoundDomain", "Cannot find resource according to your specified Domain.")
        return group, domain.settle()

    def _set_certificate(self, account: str, parameters: Parameters) -> dict[str, Any]:
        for parameter in ("GroupId", "DomainName", "CertificateName"):
            required(parameters, parameter)
        # Optional to the gateway, so that the product itself misses them, in its own words.
        for parameter in ("CertificateBody", "CertificatePrivateKey"):
            if not parameters.get(parameter):
                raise ApiError(f"Missing{parameter}", f"The {parameter} is mandatory for this action.")
        name = parameters["CertificateName"]
        if not CERTIFICATE_NAME.fullmatch(name):
            raise invalid("CertificateName")
        with self._lock:
            _, domain = self._domain(account, parameters)
            server = read_upload(
                domain.name, parameters["CertificateBody"], parameters["CertificatePrivateKey"]
            )
            domain.pending = Certificate(secrets.token_hex(16), name, server)
            domain.ready_at = time.monotonic() + self.installing_seconds
            domain.settle()
        return {}

    def _describe_domain(self, account: str, parameters: Parameters) -> dict[str, Any]:
        with self._lock:
            group, domain = self._domain(account, parameters)
            answer = describe_domain(group, domain)
            if domain.active is not None:
                server = domain.active.server
                answer["CertificateBody"] = server.chain_pem
                answer["CertificatePrivateKey"] = server.private_key_pem
        return answer

    def _set_domain(self, account: str, parameters: Parameters) -> dict[str, Any]:
        for parameter in ("GroupId", "DomainName"):
            required(parameters, parameter)
        kind = choice(parameters, "CustomDomainType", ("INTERNET", "INTRANET"))
        redirects = choice(parameters, "IsHttpRedirectToHttps", ("true", "false"))
        stage = choice(parameters, "BindStageName", ("TEST", "PRE", "RELEASE"))
        choice(parameters, "IsForce", ("true", "false"))
        name = parameters["DomainName"].lower()
        if len(name) > 253 or not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name):
            raise invalid("DomainName")
        with self._lock:
            group = self._group(account, parameters)
            for other in self._groups.values():
                if other is not group and name in other.domains:
                    raise ApiError("RepeatedDomain", "The specified Domain is repeated.")
            domain = group.domains.setdefault(name, Domain(name))
            domain.kind = kind or domain.kind
            domain.stage = stage or domain.stage
            domain.redirects = domain.redirects if redirects is None else redirects == "true"
            return {
                "GroupId": group.group_id,
                "DomainName": domain.name,
                "SubDomain": group.sub_domain,
                "DomainBindingStatus": "BINDING",
                "DomainLegalStatus": "NORMAL",
                "DomainWebSocketStatus": "CLOSE",
                "DomainRemark": "",
            }

    def _delete_certificate(self, account: str, parameters: Parameters) -> dict[str, Any]:
        for parameter in ("GroupId", "DomainName", "CertificateId"):
            required(parameters, parameter)
        with self._lock:
            _, domain = self._domain(account, parameters, "InvalidGroupId.NotFound")
            if domain.active is not None and domain.active.certificate_id == parameters["CertificateId"]:
                domain.active = None
        return {}

    def _describe_groups(self, account: str, parameters: Parameters) -> dict[str, Any]:
        group_id, name = parameters.get("GroupId", ""), parameters.get("GroupName", "")
        ascending = choice(parameters, "Sort", ("asc", "desc")) == "asc"
        with self._lock:
            found = [
                group
                for group in self._groups.values()
                if (group.account, group.region) == (account, region_of(parameters))
                and group_id in ("", group.group_id)
                and name.lower() in group.name.lower()
            ]
            if not ascending:
                found.reverse()
            fields, shown = page(found, parameters, 10, 50)
            groups = [describe_group(group) for group in shown]
        return {**fields, "ApiGroupAttributes": {"ApiGroupAttribute": groups}}

    def _describe_group(self, account: str, parameters: Parameters) -> dict[str, Any]:
        with self._lock:
            group = self._group(account, parameters)
            domains = [describe_domain(group, domain.settle()) for domain in group.domains.values()]
        for domain in domains:
            del domain["GroupId"], domain["SubDomain"]
        stages = [
            {"StageId": f"{group.group_id}-{stage.lower()}", "StageName": stage, "Description": ""}
            for stage in ("TEST", "PRE", "RELEASE")
        ]
        return {
            **describe_group(group),
            "Status": "NORMAL",
            "CustomDomains": {"DomainItem": domains},
            "StageItems": {"StageInfo": stages},
        }


def region_of(parameters: Parameters) -> str:
    """The region a request is for."""
    region = parameters.get("RegionId", "")
    return region if REGION.fullmatch(region) and len(region) < 40 else "cn-hangzhou"


def invalid(name: str) -> ApiError:
    """API Gateway's own answer to a value it does not take."""
    return ApiError(f"Invalid{name}", f"The specified parameter {name} value is not valid.")


def read_upload(domain: str, chain_pem: str, private_key_pem: str) -> ServerCertificate:
    """The uploaded certificate, or API Gateway's refusal of it."""
    try:
        certificate = certificates.read(chain_pem, private_key_pem)
    except (certificates.BadPrivateKeyError, certificates.KeyMismatchError):
        raise invalid("CertificatePrivateKey") from None
    except certificates.BadCertificateError:
        raise invalid("CertificateBody") from None
    if not certificate.covers(domain):
        raise invalid("CertificateBody")
    return certificate


def iso(moment: float) -> str:
    """An ISO 8601 time in UTC as API Gateway writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def describe_domain(group: Group, domain: Domain) -> dict[str, Any]:
    """A custom domain without its certificate's and key's text."""
    answer: dict[str, Any] = {
        "GroupId": group.group_id,
        "SubDomain": group.sub_domain,
        "DomainName": domain.name,
        "DomainBindingStatus": "BINDING",
        "DomainCNAMEStatus": "RESOLVED",
        "DomainLegalStatus": "NORMAL",
        "DomainWebSocketStatus": "CLOSE",
        "DomainRemark": "",
        "BindStageName": domain.stage,
        "CustomDomainType": domain.kind,
        "IsHttpRedirectToHttps": domain.redirects,
    }
    if domain.active is not None:
        leaf = domain.active.server.leaf
        answer["CertificateId"] = domain.active.certificate_id
        answer["CertificateName"] = domain.active.name
        answer["CertificateValidStart"] = int(leaf.not_valid_before_utc.timestamp() * 1000)
        answer["CertificateValidEnd"] = int(leaf.not_valid_after_utc.timestamp() * 1000)
    return answer


def describe_group(group: Group) -> dict[str, Any]:
    """An API group as both Describe actions show it."""
    return {
        "GroupId": group.group_id,
        "GroupName": group.name,
        "SubDomain": group.sub_domain,
        "RegionId": group.region,
        "Description": "",
        "BasePath": "/",
        "BillingStatus": "NORMAL",
        "IllegalStatus": "NORMAL",
        "HttpsPolicy": "HTTPS2_TLS1_2",
        "InstanceId": f"api-shared-vpc-{group.region}",
        "InstanceType": "VPC_SHARED",
        "TrafficLimit": 500,
        "CreatedTime": iso(group.created),
        "ModifiedTime": iso(group.created),
        "Tags": {"TagInfo": []},
    }
