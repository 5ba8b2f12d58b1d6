"""Alibaba Cloud: who we are (credentials), and call(), the one way to every API.

The calls are the official SDK's (aliyun-python-sdk-*: RPC style, signature version 1.0). Around them is what the
SDK leaves to its users: always HTTPS, parameters in the body and not in the URL, retries for what may pass, and
errors without secrets in them.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.request import getproxies, proxy_bypass

from aliyunsdkcore.acs_exception.exceptions import ClientException
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.http import protocol_type
from aliyunsdkcore.request import RpcRequest

from common import show
from common.failure import Failure, Usage

if TYPE_CHECKING:
    # Only named, so that who copies this file need not copy that one.
    from common.config import Settings

# Its __del__ looks for one, also where Ctrl-C came before there was a session, and would print a traceback.
AcsClient.session = None

TRIES = 5
TIMEOUT = (5, 20)  # seconds: to connect, to wait for the answer

# Errors that pass by themselves. Everything else stays as it is however often one asks.
_PASSING = ("Throttling", "ServiceBusy", "ServiceUnavailable", "InternalError", "SignatureNonceUsed")
_NO_ANSWER = "NoAnswer"
_NO_TLS = "NoTls"
_UNREADABLE = "UnreadableAnswer"
LARGEST_ANSWER = 10_000_000  # octets; 500 records have a tenth of that

# Error code, or its beginning -> what the person can do.
REMEDIES = {
    "DomainRecordLocked": "unlock the record in the Alibaba Cloud DNS console",
    "Forbidden": "this key may not do that: attach the RAM policy in docs/ram-policies.md to its user",
    "IncorrectDomainUser": "the domain is in another Alibaba Cloud account: use a key of that account",
    "InternalError": "the service has a fault of its own: try again in some minutes",
    "InvalidAccessKeyId": "the access key id is unknown, disabled or deleted: check the credentials",
    "InvalidAccessKeySecret": "the access key secret does not belong to the id: check the credentials",
    "InvalidDomain.NotFound": "this account's CDN does not serve the domain: check [cdn] domains",
    "InvalidDomainName.NoExist": "the domain is not in this account's Alibaba Cloud DNS: add it, or use another key",
    "InvalidSecurityToken": "the STS token is wrong or has expired: get a new one",
    "InvalidTimeStamp": "this machine's clock is wrong: set it (the service allows 15 minutes)",
    "NotFound": "check [apigateway] group_id and domains: is the domain bound to that API group?",
    "QuotaExceeded.TTL": "the domain's edition allows other TTLs than its own default: ask Alibaba Cloud's support",
    "QuotaExceeded": "a quota of the account is used up: see the message above",
    "ServiceBusy": "the service is still at work on the last change: run this again in a minute",
    "ServiceUnavailable": "the service has a fault of its own: try again in some minutes",
    "SignatureDoesNotMatch": "the access key secret does not belong to the id: check the credentials",
    "Throttling": "too many calls from this account: run this again in a minute",
    _NO_TLS: "nobody we trust vouches for this host: is there a proxy in between, or is the clock wrong?",
    _NO_ANSWER: "check the network and the proxy; then run this again",
    _UNREADABLE: "run this again; if it stays so: is there a portal or a proxy in between?",
}


class ApiError(Failure):
    """A call that an Alibaba Cloud API refused, or that got no answer.

    code: the API's error code, such as "Forbidden.RAM"; status: HTTP status, 0 without an answer
    may_have_run: a try of this call broke off before its answer, so that its effect may be there all the same
    """

    def __init__(self, action: str, code: str, message: str, status: int, request_id: str = "") -> None:
        self.code = code
        self.status = status
        self.may_have_run = code in (_NO_ANSWER, _UNREADABLE) or status >= 500
        fitting = (remedy for beginning, remedy in REMEDIES.items() if code.startswith(beginning))
        request = f" (RequestId {request_id})" if request_id else ""
        super().__init__(
            show.clean(f"{code} on {action}: {message}{request}"),
            next(fitting, "look the code up in the API's error list"),
        )


class Members(dict[str, Any]):
    """A JSON object of an answer; Failure for a member that it lacks, or that is not what it should be."""

    def __missing__(self, name: str) -> NoReturn:
        raise Failure(
            f"Alibaba Cloud's answer has no usable {name}", "run it again; if it stays so, report it"
        )

    def text(self, name: str, otherwise: str | None = None) -> str:
        """A text; `otherwise`, if there is one, where the service leaves it out or says null."""
        value = otherwise if self.get(name) is None else self[name]
        return value if isinstance(value, str) else self.__missing__(name)

    def number(self, name: str) -> int:
        return self[name] if isinstance(self[name], int) else self.__missing__(name)

    def listed(self, name: str, item: str) -> list[Any]:
        """A list, which Alibaba writes as {"Domains": {"Domain": [...]}}."""
        holder = self[name]
        items = holder.get(item) if isinstance(holder, Members) else None
        return items if isinstance(items, list) else self.__missing__(name)

    def objects(self, name: str, item: str) -> list[Members]:
        """A list of objects."""
        items = self.listed(name, item)
        return items if all(isinstance(one, Members) for one in items) else self.__missing__(name)


class Credentials(NamedTuple):
    """An access key, with its STS token when it is a temporary one."""

    access_key_id: str
    access_key_secret: str
    security_token: str | None = None


def credentials(settings: Settings) -> Credentials:
    """The access key to use: what the settings name, else the environment, else Alibaba's default chain.

    [alibaba] profile names a profile of the aliyun CLI (~/.aliyun/config.json) or of the credentials file
    (~/.alibabacloud/credentials.ini, or [alibaba] credentials_file). Without it: $ALIBABA_CLOUD_ACCESS_KEY_ID and
    $ALIBABA_CLOUD_ACCESS_KEY_SECRET (and $ALIBABA_CLOUD_SECURITY_TOKEN), then the CLI's current profile, the
    credentials file, the RAM role of the ECS instance (https://www.alibabacloud.com/help/en/sdk/developer-reference/
    v2-manage-python-access-credentials).
    """
    found = _from_settings(settings) or _from_environment() or _from_default_chain()
    if not all(part.isascii() and part.isprintable() for part in found if part):
        raise Usage(
            "the Alibaba Cloud credentials hold a character that no access key has",
            "copy them anew, and nothing around them",
        )
    show.secret(found.access_key_secret)
    if found.security_token:
        show.secret(found.security_token)
    return found


class Client:
    """One product of Alibaba Cloud, for one access key."""

    def __init__(self, key: Credentials, region: str, endpoint: str, ca_bundle: str | None = None) -> None:
        _silence_sdk_logs()
        self.endpoint = endpoint
        self._token = key.security_token
        # The key goes in as ak and secret: a credential object would lose to $ALIYUN_ACCESS_KEY_ID, were it set.
        self._sdk = AcsClient(
            key.access_key_id,
            key.access_key_secret,
            region,
            auto_retry=False,
            connect_timeout=TIMEOUT[0],
            timeout=TIMEOUT[1],
            verify=ca_bundle or True,
            pool_size=16,
            proxy={"https": _proxy_for(endpoint)},
        )
        # No credentials from ~/.netrc; and a look at each answer before the SDK works on it.
        self._sdk.session.trust_env = False
        self._sdk.session.hooks["response"].append(self._keep_answer)
        self._answer = threading.local()

    def call(
        self, request_class: type[RpcRequest], parameters: Mapping[str, str], brief: bool = False
    ) -> Members:
        """Make one call and return its answer; tried again when the service is busy or the connection breaks.

        request_class: the SDK's class of the action; it holds product, version and action name
        parameters: as the API's page names them
        Errors: ApiError. Never an SDK exception: those quote URLs and parameters.
        """
        may_have_run = False
        for attempt in range(1, TRIES + 1):
            try:
                return self._call_once(request_class, parameters, brief)
            except ApiError as error:
                passing = error.may_have_run or error.code.startswith(_PASSING)
                error.may_have_run = may_have_run = error.may_have_run or may_have_run
                if attempt == TRIES or not passing:
                    raise
                # Full jitter, so that many scripts that were refused together do not come back together.
                pause = random.uniform(0.1, min(0.5 * 2**attempt, 8))
                show.say(f"    {error.code}: again in {pause:.1f} s (try {attempt + 1} of {TRIES})")
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _call_once(
        self, request_class: type[RpcRequest], parameters: Mapping[str, str], brief: bool
    ) -> Members:
        request = request_class()
        action = request.get_action_name()
        request.set_endpoint(self.endpoint)
        # The constant itself: the SDK compares with "is", and what is merely equal would go out as plain HTTP.
        request.set_protocol_type(protocol_type.HTTPS)
        # In the form body, where no access log and no error message of a proxy will keep it.
        request.set_method("POST")
        for name, value in parameters.items():
            request.add_body_params(name, value)
        if self._token:
            request.add_body_params("SecurityToken", self._token)
        sent = {
            "action": f"{action} ({request.get_product()} {request.get_version()})",
            "parameters": dict(parameters),
        }
        show.explain(action)
        started = time.monotonic()
        self._answer.value = None
        reason = ""
        try:
            self._sdk.do_action_with_exception(request)
        except ClientException as error:
            reason = _reason(str(error.message))
        except Exception as error:  # noqa: BLE001 - the SDK fails in many ways on error bodies it does not expect
            reason = type(error).__name__
        status, text = self._answer.value or (0, "")
        answer = _object(text)
        told: dict[str, Any] = {"body": answer if answer is not None else show.shorten(text)} if text else {}
        show.exchange(
            "POST", f"https://{self.endpoint}/", sent, str(status or f"no answer: {reason}"), told,
            time.monotonic() - started, "alibaba", brief and status == 200,
        )  # fmt: skip
        if not status:
            code = _NO_TLS if re.search("certificate|SSL|hostname '", reason) else _NO_ANSWER
            raise ApiError(action, code, f"{self.endpoint}: {reason}", 0)
        if answer is None:
            code = "InternalError" if status >= 500 else _UNREADABLE
            raise ApiError(action, code, f"{self.endpoint} answered {status} with no JSON object", status)
        if status != 200:
            code, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
            if not re.fullmatch(r"[\w.-]+", code, re.ASCII):
                words = f"{self.endpoint} answered {status} with no usable error code"
                raise ApiError(action, _UNREADABLE, words, status)
            if code.startswith("InvalidTimeStamp"):
                message += _off_by(self.date())
            raise ApiError(action, code, message, status, str(answer.get("RequestId", "")))
        return answer

    def date(self) -> str | None:
        """The Date header of the last answer to this thread; None when there was none."""
        return getattr(self._answer, "date", None)

    def _keep_answer(self, response: Any, *_args: Any, **_kwargs: Any) -> None:
        self._answer.date = response.headers.get("Date")
        content = b""
        for piece in response.iter_content(65536):
            content += piece
            if len(content) > LARGEST_ANSWER:
                response.close()
                raise OSError(f"the answer is longer than {LARGEST_ANSWER} octets")
        # Where the SDK's requests keeps what has been read, and will look for it.
        response._content = content
        self._answer.value = (response.status_code, content.decode("utf-8", errors="replace"))


def connect(settings: Settings, product: str) -> Client:
    """A Client for "alidns", "cdn", "apigateway" or "sts", with the credentials, region and endpoint of the settings.

    The endpoint is always named. Left to itself, the SDK asks a location service about regions it does not know.
    """
    chosen = settings.alibaba
    endpoints = {
        "alidns": chosen.alidns_endpoint or "alidns.aliyuncs.com",
        "cdn": chosen.cdn_endpoint or "cdn.aliyuncs.com",
        "apigateway": chosen.apigateway_endpoint or f"apigateway.{chosen.region}.aliyuncs.com",
        "sts": chosen.sts_endpoint or "sts.aliyuncs.com",
    }
    bundle = chosen.ca_bundle
    if bundle and not bundle.is_file():
        raise Usage(f"{settings.file}: [alibaba] ca_bundle: there is no file {bundle}", "correct the path")
    return Client(credentials(settings), chosen.region, endpoints[product], str(bundle) if bundle else None)


def _from_settings(settings: Settings) -> Credentials | None:
    profile, file = settings.alibaba.profile, settings.alibaba.credentials_file
    if not profile and not file:
        return None
    from alibabacloud_credentials.provider import CLIProfileCredentialsProvider, ProfileCredentialsProvider

    providers: list[Any] = [ProfileCredentialsProvider(profile_file=file and str(file), profile_name=profile)]
    if not file:
        providers.insert(0, CLIProfileCredentialsProvider(profile_name=profile))
    where = str(file) if file else "~/.aliyun/config.json or ~/.alibabacloud/credentials.ini"
    return _first(
        providers, f"{settings.file}: [alibaba] profile: no usable profile {profile or 'default'} in {where}"
    )


def _from_environment() -> Credentials | None:
    # Answered here as the library would: its import costs a quarter of a second.
    key_id, secret = (
        os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID"),
        os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    )
    if not key_id or not secret:
        return None
    return Credentials(key_id, secret, os.environ.get("ALIBABA_CLOUD_SECURITY_TOKEN") or None)


def _from_default_chain() -> Credentials:
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

    return _first([DefaultCredentialsProvider()], "there are no Alibaba Cloud credentials")


def _first(providers: list[Any], otherwise: str) -> Credentials:
    for provider in providers:
        try:
            found = provider.get_credentials()
        except Exception:  # noqa: BLE001, S112 - each provider fails in its own way, and its words may quote a secret
            continue
        if found.get_access_key_id() and found.get_access_key_secret():
            return Credentials(
                found.get_access_key_id(), found.get_access_key_secret(), found.get_security_token() or None
            )
    raise Usage(
        otherwise,
        "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or run: aliyun configure",
    )


def _proxy_for(endpoint: str) -> str:
    """The proxy that the environment names for this host, if any; none for this machine, where the lab is.

    The SDK does not know no_proxy.
    """
    host = endpoint.partition(":")[0]
    return "" if host in ("127.0.0.1", "localhost") or proxy_bypass(host) else getproxies().get("https", "")


def _silence_sdk_logs() -> None:
    """The SDK logs URLs and answers, some at ERROR, and prints requests when $DEBUG is "sdk"."""
    for name in ("aliyunsdkcore", "aliyunsdkcore.client", "aliyunsdkcore.http.http_response"):
        logging.getLogger(name).disabled = True


def _reason(message: str) -> str:
    """Why there was no answer, from the SDK's message, which quotes the URL with all that is in it."""
    cause = message.partition("(Caused by ")[2] or message
    words = re.sub(r"<[^<>]*>: |url: \S+", "", cause)  # objects and addresses
    known = re.search(
        r"certificate verify failed[^(]*|hostname '[^\"]*|\[Errno -?\d+\] [^'\")]*|timed out|Remote end closed[^')]*",
        words,
    )
    return show.clean(known[0] if known else words).strip(" .(")


def _off_by(date: str | None) -> str:
    """How far this machine's clock is from the service's, which is in the Date header of its answers."""
    try:
        moment = parsedate_to_datetime(date or "")
    except (TypeError, ValueError, OverflowError):
        return ""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    minutes = (datetime.now(timezone.utc) - moment).total_seconds() / 60
    return f" This machine's clock is {abs(minutes):.0f} minutes {'ahead' if minutes > 0 else 'behind'}."


def _object(text: str) -> Members | None:
    try:
        value = json.loads(text, object_hook=Members)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, Members) else None
