"""CDN 2018-05-10 (cdn.aliyuncs.com): accelerated domains and their certificates.

Known from ("doc" is an Alibaba help page, "seen" a real answer quoted in a public issue):

    fields, limits, defaults                doc, the API pages of the four actions
    InvalidSSLProtocol.ValueNotSupported    doc 2297005
    SSLPub.MissingParameter                 doc 2297005
    SSLPri.MissingParameter                 seen: certd#632; also for CertType=cas without CertId
    InvalidSSLPri "... is malformed!"       seen: letsencrypt-aliyun-cdn#1
    InvalidDomain.NotFound 404              doc, generic CDN errors; for others' domains inferred
    ServiceBusy 403                         doc, generic CDN errors
    InvalidSSLPub                           inferred from InvalidSSLPri
    a key of another certificate            inferred: InvalidSSLPri
    a certificate for other names           inferred: InvalidSSLPub
    CertName.AlreadyExists                  inferred: names must be unique (cdn_cert#1), text seen on
                                            ESA (dnsmgr#178)
    a PKCS#8 key is refused                 doc "certificate formats" wants it converted; whether the service
                                            insists is unknown
    how long a domain is configuring        the lab's choice: `configuring_seconds`
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from . import certificates
from .certificates import ServerCertificate
from .errors import Action, ApiError, Parameters, choice, integer, invalid, page, required


@dataclass(frozen=True)
class Setting:
    """What a domain's HTTPS is set to; without a certificate it is off."""

    certificate: ServerCertificate | None = None
    name: str = ""
    certificate_id: str = ""
    updated: float = 0.0


@dataclass
class Domain:
    """An accelerated domain; `pending` takes over from `active` at `ready_at` (time.monotonic())."""

    name: str
    account: str
    domain_id: str
    created: float
    modified: float
    active: Setting = field(default_factory=Setting)
    pending: Setting | None = None
    ready_at: float = 0.0

    def settle(self) -> Domain:
        """Let a finished configuration take effect."""
        if self.pending is not None and time.monotonic() >= self.ready_at:
            self.active, self.pending = self.pending, None
        return self

    @property
    def status(self) -> str:
        return "online" if self.pending is None else "configuring"

    @property
    def cname(self) -> str:
        return f"{self.name.lstrip('.')}.w.kunlunsl.com"


class Cdn:
    """The accelerated domains of all accounts."""

    PRODUCT, VERSION, RAM_PREFIX, FORBIDDEN_STATUS = "Cdn", "2018-05-10", "cdn", 403

    def __init__(self) -> None:
        self.configuring_seconds = 0.3
        self._lock = threading.RLock()
        self._domains: dict[str, Domain] = {}
        self._names: dict[tuple[str, str], Setting] = {}
        self.actions: dict[str, Action] = {
            "SetCdnDomainSSLCertificate": self._set_certificate,
            "DescribeDomainCertificateInfo": self._describe_certificate,
            "DescribeCdnDomainDetail": self._describe_domain,
            "DescribeUserDomains": self._describe_user_domains,
        }

    def host(self, parameters: Parameters) -> str:
        """The HostId of an answer."""
        return "cdn.aliyuncs.com"

    # The cloud's own side: the lab fills it, edges read it.

    def add_domain(self, name: str, account: str = "learner") -> None:
        """Accelerate a domain; a wildcard domain is written ".example.com"."""
        with self._lock:
            now = time.time()
            domain_id = str(10**6 + secrets.randbelow(9 * 10**6))
            self._domains[name.lower()] = Domain(name.lower(), account, domain_id, now, now)

    def domain_names(self) -> list[str]:
        """Every accelerated domain of every account."""
        with self._lock:
            return list(self._domains)

    def certificate_for(self, server_name: str) -> tuple[str, str] | None:
        """(chain, private key), both PEM, that an edge serves now for this SNI."""
        name = server_name.lower().rstrip(".")
        with self._lock:
            domain = self._domains.get(name) or self._domains.get("." + name.partition(".")[2])
            if domain is None:
                return None
            certificate = domain.settle().active.certificate
        return None if certificate is None else (certificate.chain_pem, certificate.private_key_pem)

    # Actions.

    def _domain(self, account: str, parameters: Parameters) -> Domain:
        domain = self._domains.get(required(parameters, "DomainName").lower())
        if domain is None or domain.account != account:
            raise ApiError(
                "InvalidDomain.NotFound",
                "The domain provided does not exist in our records.",
                404,
            )
        return domain.settle()

    def _set_certificate(self, account: str, parameters: Parameters) -> dict[str, Any]:
        required(parameters, "DomainName")
        protocol = required(parameters, "SSLProtocol")
        if protocol not in ("on", "off"):
            raise ApiError("InvalidSSLProtocol.ValueNotSupported", "The specified SSLProtocol is invalid.")
        with self._lock:
            domain = self._domain(account, parameters)
            if domain.pending is not None:
                raise ApiError("ServiceBusy", "The specified Domain is configuring, please retry later.", 403)
            setting = Setting(updated=time.time())
            if protocol == "on":
                setting = self._read_setting(domain, parameters)
            domain.pending = setting
            domain.ready_at = time.monotonic() + self.configuring_seconds
            domain.modified = time.time()
        return {}

    def _read_setting(self, domain: Domain, parameters: Parameters) -> Setting:
        kind = choice(parameters, "CertType", ("upload", "cas")) or "upload"
        if kind == "cas":
            # A certificate of Certificate Management Service is named by its id; the lab has none.
            if not parameters.get("CertId"):
                raise ApiError("SSLPri.MissingParameter", "The SSLPri parameter is required.")
            integer(parameters, "CertId", 0, 1, 10**17)
            choice(parameters, "CertRegion", ("cn-hangzhou", "ap-southeast-1"))
            raise ApiError("Certificate.NotFound", "The specified certificate does not exist.", 404)
        for name in ("SSLPub", "SSLPri"):
            if not parameters.get(name):
                raise ApiError(f"{name}.MissingParameter", f"The {name} parameter is required.")
        certificate = read_upload(domain.name, parameters["SSLPub"], parameters["SSLPri"])
        name = parameters.get("CertName") or f"cert-{secrets.token_hex(6)}"
        if len(name) > 128:
            raise invalid("CertName")
        known = self._names.get((domain.account, name))
        if known is not None and known.certificate is not None:
            if known.certificate.leaf != certificate.leaf:
                raise ApiError("CertName.AlreadyExists", "The certificate name already exists.")
            certificate_id = known.certificate_id
        else:
            certificate_id = str(10**7 + secrets.randbelow(9 * 10**7))
        setting = Setting(certificate, name, certificate_id, time.time())
        self._names[domain.account, name] = setting
        return setting

    def _describe_certificate(self, account: str, parameters: Parameters) -> dict[str, Any]:
        with self._lock:
            domain = self._domain(account, parameters)
            return {"CertInfos": {"CertInfo": [describe_certificate(domain)]}}

    def _describe_domain(self, account: str, parameters: Parameters) -> dict[str, Any]:
        with self._lock:
            domain = self._domain(account, parameters)
            https = domain.active.certificate is not None
            return {
                "GetDomainDetailModel": {
                    "DomainName": domain.name,
                    "DomainStatus": domain.status,
                    "Cname": domain.cname,
                    "HttpsCname": domain.cname if https else "",
                    "CdnType": "web",
                    "Scope": "domestic",
                    "ServerCertificateStatus": "on" if https else "off",
                    "GmtCreated": utc(domain.created),
                    "GmtModified": utc(domain.modified),
                    "Description": "",
                    "ResourceGroupId": "",
                    "SourceModels": {"SourceModel": [SOURCE]},
                }
            }

    def _describe_user_domains(self, account: str, parameters: Parameters) -> dict[str, Any]:
        wanted = parameters.get("DomainName", "").lower()
        search = choice(
            parameters, "DomainSearchType", ("full_match", "fuzzy_match", "pre_match", "suf_match")
        )
        status = parameters.get("DomainStatus", "")
        with self._lock:
            own = [
                domain
                for domain in self._domains.values()
                if domain.account == account
                and name_matches(domain.name, wanted, search or "full_match")
                and status in ("", domain.settle().status)
            ]
            own.reverse()
            fields, shown = page(own, parameters, 20, 500, maximum_number=100_000)
            return {**fields, "Domains": {"PageData": [describe_listed(domain) for domain in shown]}}


SOURCE = {"Type": "ipaddr", "Content": "127.0.0.1", "Port": 80, "Priority": "20", "Weight": "10"}


def read_upload(domain: str, chain_pem: str, private_key_pem: str) -> ServerCertificate:
    """The uploaded certificate, or CDN's refusal of it."""
    try:
        certificate = certificates.read(chain_pem, private_key_pem)
    except certificates.BadPrivateKeyError:
        raise ApiError("InvalidSSLPri", "The SSLPri you provided is malformed!") from None
    except certificates.BadCertificateError:
        raise ApiError("InvalidSSLPub", "The SSLPub you provided is malformed!") from None
    except certificates.KeyMismatchError:
        raise ApiError("InvalidSSLPri", "The SSLPri you provided does not match the SSLPub!") from None
    if not certificate.covers(domain):
        raise ApiError("InvalidSSLPub", "The SSLPub you provided does not match the domain name!")
    return certificate


def name_matches(name: str, wanted: str, search: str) -> bool:
    """The DomainSearchType of DescribeUserDomains."""
    if not wanted:
        return True
    return {
        "full_match": name == wanted,
        "fuzzy_match": wanted in name,
        "pre_match": name.startswith(wanted),
        "suf_match": name.endswith(wanted),
    }[search]


def utc(moment: float | datetime) -> str:
    """An ISO 8601 time in UTC as Alibaba writes it."""
    seconds = moment.timestamp() if isinstance(moment, datetime) else moment
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def describe_certificate(domain: Domain) -> dict[str, Any]:
    """The certificate that the edges serve now, as DescribeDomainCertificateInfo shows it."""
    setting, certificate = domain.active, domain.active.certificate
    answer: dict[str, Any] = {
        "DomainName": domain.name,
        "ServerCertificateStatus": "off" if certificate is None else "on",
        "DomainCnameStatus": "ok",
        "Status": "success",
    }
    if certificate is None:
        return answer
    begin, end = certificate.leaf.not_valid_before_utc, certificate.leaf.not_valid_after_utc
    months = max(1, round((end - begin).days / 30))
    return {
        **answer,
        "CertName": setting.name,
        "CertId": setting.certificate_id,
        "CertDomainName": certificate.common_name,
        "CertStartTime": utc(begin),
        "CertExpireTime": utc(end),
        "CertUpdateTime": utc(setting.updated),
        "CertLife": f"{months} months",
        "CertOrg": certificate.issuer,
        "CertType": "upload",
        "CertRegion": "cn-hangzhou",
        "ServerCertificate": certificate.chain_pem,
    }


def describe_listed(domain: Domain) -> dict[str, Any]:
    """A domain as DescribeUserDomains lists it."""
    return {
        "DomainName": domain.name,
        "DomainId": int(domain.domain_id),
        "Cname": domain.cname,
        "CdnType": "web",
        "DomainStatus": domain.status,
        "SslProtocol": "off" if domain.active.certificate is None else "on",
        "Coverage": "domestic",
        "Sandbox": "normal",
        "Description": "",
        "ResourceGroupId": "",
        "GmtCreated": utc(domain.created),
        "GmtModified": utc(domain.modified),
        "Sources": {"Source": [SOURCE]},
    }
