"""What may go wrong at the emulated Alibaba Cloud. A call's request is a Request, its answer a gateway.Answer."""

import dataclasses
import time
from typing import NamedTuple

from lab.alibaba.cloud import Cloud
from lab.alibaba.errors import ApiError
from lab.alibaba.gateway import Answer
from lab.faults import Call, Part

PART = Part("Alibaba Cloud", tuple(action for product in Cloud().products for action in product.actions))
SETTING = ("SetCdnDomainSSLCertificate", "SetDomainCertificate")


class Request(NamedTuple):
    """A call at the gateway."""

    cloud: Cloud
    action: str


def _error(code: str, message: str, status: int, name: str, words: str, *at: str) -> None:
    """A fault that is an error answer; the call is checked, signature and all, and does nothing."""

    def refuse(call: Call) -> Answer:
        call.request.cloud.fail_next(call.request.action, ApiError(code, message, status))
        return call.ask()

    PART.fault(*at, name=name, description=words)(refuse)


# The connection.


@PART.fault()
def alibaba_slow(call: Call) -> Answer:
    """The answer is late, by 2 s or =SECONDS."""
    answer = call.ask()
    call.pause(2.0 if call.value is None else call.value)
    return answer


@PART.fault()
def alibaba_hang(call: Call) -> Answer:
    """The call takes effect, but no answer comes, and the connection stays open."""
    answer = call.ask()
    call.pause(600)
    return dataclasses.replace(answer, lost=True)


@PART.fault()
def alibaba_reset_before(call: Call) -> Answer:
    """The connection breaks before the call takes effect."""
    return Answer(0, b"", "", "", lost=True)


@PART.fault()
def alibaba_reset_after(call: Call) -> Answer:
    """The call takes effect, and the connection breaks before its answer."""
    return dataclasses.replace(call.ask(), lost=True)


# Errors that pass.

_error(
    "Throttling.User",
    "Request was denied due to user flow control.",
    400,
    "alibaba-throttled",
    "Throttling.User: too many calls",
)
_error(
    "ServiceBusy",
    "The specified Domain is configuring, please retry later.",
    403,
    "alibaba-busy",
    "ServiceBusy: the CDN is configuring the domain still",
    *SETTING,
)
_error(
    "ServiceUnavailable",
    "The request has failed due to a temporary failure of the server.",
    503,
    "alibaba-503",
    "503 ServiceUnavailable, in the API's own form",
)


@PART.fault()
def alibaba_500(call: Call) -> Answer:
    """500 after the call took effect, in HTML."""
    page = b"<html><h1>500 Internal Server Error</h1></html>"
    return dataclasses.replace(call.ask(), status=500, body=page, content_type="text/html")


# Errors that stay.


@PART.fault()
def alibaba_clock(call: Call) -> Answer:
    """InvalidTimeStamp.Expired: the service's clock is 3600 s ahead, or =SECONDS."""
    text = "Specified time stamp or date value is expired."
    call.request.cloud.fail_next(call.request.action, ApiError("InvalidTimeStamp.Expired", text))
    ahead = 3600.0 if call.value is None else call.value
    # Its Date header says so, too.
    return dataclasses.replace(call.ask(), date=time.time() + ahead)


_error(
    "Forbidden.RAM",
    "User not authorized to operate on the specified resource, or this API doesn't support RAM.",
    403,
    "alibaba-forbidden",
    "Forbidden.RAM: the key may not do that",
)
_error(
    "InvalidAccessKeyId.NotFound",
    "Specified access key is not found.",
    404,
    "alibaba-unknown-key",
    "InvalidAccessKeyId.NotFound",
)
_error(
    "SignatureDoesNotMatch",
    "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&Action%3DX",
    400,
    "alibaba-signature",
    "SignatureDoesNotMatch",
)
_error(
    "QuotaExceeded.TTL",
    "The specified TTL is invalid. A valid TTL must be in the range of 600 to 86400.",
    400,
    "alibaba-ttl",
    "QuotaExceeded.TTL: the domain's edition wants a longer TTL",
    "AddDomainRecord",
)
_error(
    "DomainRecordDuplicate",
    "The DNS record already exists.",
    400,
    "alibaba-duplicate",
    "DomainRecordDuplicate, although there is no such record",
    "AddDomainRecord",
)
_error(
    "DomainRecordLocked",
    "The domain record has been locked.",
    400,
    "alibaba-locked",
    "DomainRecordLocked: the record cannot be deleted",
    "DeleteDomainRecord",
)


@PART.fault(*SETTING)
def alibaba_ignored(call: Call) -> Answer:
    """A certificate is accepted, and configuring it never ends."""
    # The very answer, without the effect.
    return Answer(200, b'{"RequestId":"0F1A2B3C-0000-0000-0000-000000000000"}', "application/json", "")


# Answers that the SDK was not made for.


def _body(name: str, words: str, status: int, body: bytes, content_type: str = "application/json") -> None:
    def answer(call: Call) -> Answer:
        # An error means that nothing was done.
        real = call.ask() if status == 200 else Answer(0, b"", "", "0F1A2B3C")
        return dataclasses.replace(real, status=status, body=body, content_type=content_type)

    PART.fault(name=name, description=words)(answer)


_body(
    "alibaba-odd-signature",
    "SignatureDoesNotMatch, with no colon in its message",
    400,
    b'{"Code":"SignatureDoesNotMatch","Message":"no colon here","RequestId":"X"}',
)
_body("alibaba-not-utf8", "an error whose body is not UTF-8", 400, b'{"Code":"\xff\xfe","Message":"\x80"}')
_body("alibaba-number", "an error whose body is a JSON number", 400, b"42")
_body("alibaba-html", "200 with a page of HTML", 200, b"<!doctype html><p>Please log in.", "text/html")
_body("alibaba-empty", "200 with an empty body", 200, b"")
_body("alibaba-truncated", "200 with half a JSON object", 200, b'{"RequestId":"0F1A2B3C-00')
_body("alibaba-deep", "200 with JSON nested a hundred thousand times", 200, b"[" * 100_000 + b"]" * 100_000)
_body(
    "alibaba-strange", "200 with a JSON object that has none of the members it should have", 200, b'{"a":1}'
)


@PART.fault()
def alibaba_huge(call: Call) -> Answer:
    """200 with a body of 50 MB."""
    return dataclasses.replace(call.ask(), body=b'{"RequestId":"' + b"A" * 50_000_000 + b'"}')
