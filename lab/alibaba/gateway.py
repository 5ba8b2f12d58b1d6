"""The API gateway in front of the products: HTTPS, the RPC signature, common errors, JSON and XML.

Known from ("doc" is an Alibaba help page, "seen" a real answer quoted in a public issue):

    the signature, version 1.0              doc "RPC signature"; its DescribeRegions example is a test
    XML by default, order of its elements   doc 29746; seen: openapi-sdk-php#175
    body of an error, in JSON               seen: ddns-go#1393
    InvalidVersion                     400  seen: openapi-sdk-php#175, status inferred
    InvalidAction.NotFound             404  seen: certd#167
    SignatureDoesNotMatch              400  seen: NewFuture/DDNS#57, with the server's string to sign
    InvalidTimeStamp.Format, .Expired  400  doc 48054
    InvalidParameter.Format            400  doc 43906, an old version of the page
    InvalidSignatureMethod, InvalidSignatureVersion
                                       400  codes doc 53438, wording and status inferred
    UnsupportedHTTPMethod              403  code doc 53438, wording and status doc 51132 of another product
    duplicated parameters, broken or large bodies, timeouts
                                       4xx  inferred: refused, in the gateway's form
    the order of the checks                 inferred
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, final
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

from ..https_server import HttpsHandler, HttpsServer
from .alidns import AliDns
from .apigateway import ApiGateway
from .cdn import Cdn
from .cloud import Call, Cloud
from .errors import ApiError, invalid, missing
from .ram import check_allowed
from .sts import Sts

log = logging.getLogger(__name__)

Product = AliDns | Cdn | ApiGateway | Sts

MAXIMUM_BODY = 1024 * 1024
MAXIMUM_PARAMETERS = 1000
CLOCK_SKEW_SECONDS = 15 * 60
SOCKET_SECONDS = 30.0

# Values that are secret or long are logged by their length alone.
WITHHELD = (
    "SSLPub",
    "SSLPri",
    "CertificateBody",
    "CertificatePrivateKey",
    "CaCertificateBody",
    "SecurityToken",
    "Signature",
)

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
# XML 1.0 allows no other control characters, escaped or not.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def percent_encode(text: str) -> str:
    """RFC 3986: everything but letters, digits, "-", "_", "." and "~" as UTF-8 octets."""
    return quote(text, safe="-_.~")


def string_to_sign(method: str, parameters: Mapping[str, str]) -> str:
    """What is signed: the method, the path "/", and all parameters but Signature, in order of their names."""
    query = "&".join(
        f"{percent_encode(name)}={percent_encode(value)}"
        for name, value in sorted(parameters.items())
        if name != "Signature"
    )
    return f"{method}&%2F&{percent_encode(query)}"


def signature(text: str, access_key_secret: str) -> str:
    """HMAC-SHA1 of the string to sign, base64; the key is the secret and "&"."""
    digest = hmac.new(f"{access_key_secret}&".encode(), text.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `lost` means that the connection ends without it, `date` is what its Date header says."""

    status: int
    body: bytes
    content_type: str
    request_id: str
    lost: bool = False
    date: float | None = None


def answer(cloud: Cloud, method: str, query: str, body: bytes, content_type: str) -> Answer:
    """Answer one request."""
    request_id = str(uuid.uuid4()).upper()
    parameters: dict[str, str] = {}
    product: Product = cloud.dns
    lost = False
    try:
        pairs = read_pairs(query, body, content_type)
        parameters = dict(pairs)
        product = find_product(cloud, parameters)
        check_once(pairs)
        result, lost = run(cloud, product, method, parameters)
        status, code = 200, ""
        content = {"RequestId": request_id, **result}
        root = parameters["Action"] + "Response"
    except ApiError as error:
        status, code, root = error.status, error.code, "Error"
        content = error_body(product, parameters, request_id, error)
    cloud.record(
        Call(
            time=time.time(),
            access_key_id=parameters.get("AccessKeyId", ""),
            product=product.PRODUCT,
            action=parameters.get("Action", ""),
            http_method=method,
            query=query,
            parameters={
                name: f"({len(value)} characters)" if name in WITHHELD else value
                for name, value in parameters.items()
            },
            status=status,
            code=code,
        )
    )
    encoded, answer_type = render(root, content, parameters.get("Format", ""))
    return Answer(status, encoded, answer_type, request_id, lost)


# What may be put around the answering of a call: (action, what answers it) -> the answer.
Around = Callable[[str, Callable[[], Answer]], Answer]


def action_of(query: str, body: bytes) -> str:
    """The action that a request names, if it names one."""
    found = re.search(r"(?:^|&)Action=(\w+)", f"{query}&{body.decode('latin-1')}")
    return found[1] if found else ""


def error_answer(error: ApiError) -> Answer:
    """The answer to what could not even be read as a request; always XML, the service's default."""
    request_id = str(uuid.uuid4()).upper()
    body, content_type = render("Error", error_body(AliDns(), {}, request_id, error), "")
    return Answer(error.status, body, content_type, request_id)


def error_body(
    product: Product, parameters: Mapping[str, str], request_id: str, error: ApiError
) -> dict[str, Any]:
    """The body of an error answer."""
    return {
        "RequestId": request_id,
        "HostId": product.host(parameters),
        "Code": error.code,
        "Message": error.message,
        "Recommend": f"https://api.aliyun.com/troubleshoot?q={quote(error.code)}"
        f"&product={product.PRODUCT}&requestId={request_id}",
        **error.detail,
    }


def read_pairs(query: str, body: bytes, content_type: str) -> list[tuple[str, str]]:
    """The names and values in query string and form."""
    media_type = content_type.partition(";")[0].strip().lower()
    if body and media_type not in ("", "application/x-www-form-urlencoded"):
        raise ApiError("UnsupportedContentType", "The request body must be a form.", 415)
    try:
        return [
            pair
            for text in (query, body.decode("ascii"))
            for pair in parse_qsl(
                text, keep_blank_values=True, errors="strict", max_num_fields=MAXIMUM_PARAMETERS
            )
        ]
    except ValueError:
        # Not ASCII, percent-encoded octets that are not UTF-8, or too many parameters.
        raise ApiError("InvalidParameter", "The request parameters are not well formatted.") from None


def check_once(pairs: list[tuple[str, str]]) -> None:
    """A parameter given twice could be read in two ways, and signed in one."""
    counts = Counter(name for name, _ in pairs)
    for name, count in counts.items():
        if count > 1:
            raise ApiError("InvalidParameter", f"Specified parameter {name} is duplicated.")


def find_product(cloud: Cloud, parameters: Mapping[str, str]) -> Product:
    """The product a request is for: they have different versions."""
    for product in cloud.products:
        if parameters.get("Version") == product.VERSION:
            return product
    for product in cloud.products:
        if parameters.get("Action") in product.actions:
            return product
    return cloud.dns


def run(
    cloud: Cloud, product: Product, method: str, parameters: dict[str, str]
) -> tuple[dict[str, Any], bool]:
    """Check the request as the gateway does, then do the action: (its answer, whether the answer is lost)."""
    if parameters.get("Format", "").upper() not in ("", "JSON", "XML"):
        raise ApiError("InvalidParameter.Format", "Specified parameter format is not valid.")
    # Some of Alibaba's pages, and the clients made from them, write TimeStamp.
    timestamp_name = "TimeStamp" if "TimeStamp" in parameters else "Timestamp"
    for name in ("Version", "Action", "AccessKeyId"):
        if not parameters.get(name):
            raise missing(name)
    if parameters["Version"] != product.VERSION:
        raise invalid("Version")
    action = product.actions.get(parameters["Action"])
    if action is None:
        raise ApiError(
            "InvalidAction.NotFound", "Specified api is not found, please check your url and method.", 404
        )
    for name in ("SignatureMethod", "SignatureVersion", "SignatureNonce", timestamp_name, "Signature"):
        if not parameters.get(name):
            raise missing(name)
    grant = cloud.ram.find(parameters["AccessKeyId"])
    if parameters["SignatureMethod"] != "HMAC-SHA1":
        raise invalid("SignatureMethod")
    if parameters["SignatureVersion"] != "1.0":
        raise invalid("SignatureVersion")
    check_timestamp(parameters[timestamp_name])
    text = string_to_sign(method, parameters)
    expected = signature(text, grant.key.access_key_secret)
    if not hmac.compare_digest(expected.encode(), parameters["Signature"].encode()):
        raise ApiError(
            "SignatureDoesNotMatch",
            f"Specified signature is not matched with our calculation. server string to sign is:{text}",
        )
    # Only now: else anyone could use up another's nonces.
    cloud.ram.use_nonce(grant.key.access_key_id, parameters["SignatureNonce"])
    cloud.ram.check_token(grant, parameters.get("SecurityToken", ""))
    if product.RAM_PREFIX:
        check_allowed(grant, f"{product.RAM_PREFIX}:{parameters['Action']}", product.FORBIDDEN_STATUS)
    due, fault = cloud.take_fault(parameters["Action"])
    if fault is not None:
        raise fault
    return action(grant.account, parameters), due


def check_timestamp(text: str) -> None:
    """ISO 8601 in UTC to the second, at most 15 minutes from the server's clock."""
    try:
        if not TIMESTAMP.fullmatch(text):
            raise ValueError
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OverflowError):
        raise ApiError(
            "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted."
        ) from None
    if abs(moment - time.time()) > CLOCK_SKEW_SECONDS:
        raise ApiError("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")


def render(root: str, content: dict[str, Any], format_: str) -> tuple[bytes, str]:
    """(body, Content-Type) of an answer; without a Format it is XML."""
    if format_.upper() == "JSON":
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace"), "application/json;charset=utf-8"
    text = f"<?xml version='1.0' encoding='UTF-8'?>{to_xml(root, content)}"
    return text.encode("utf-8", "replace"), "text/xml;charset=utf-8"


def to_xml(name: str, value: Any) -> str:
    """An element; a list becomes one element for each of its items."""
    if isinstance(value, list):
        return "".join(to_xml(name, item) for item in value)
    if isinstance(value, dict):
        inner = "".join(to_xml(key, item) for key, item in value.items())
    elif isinstance(value, bool):
        inner = str(value).lower()
    else:
        inner = escape(NOT_XML.sub("?", str(value)), {"\r": "&#13;"})
    return f"<{name}>{inner}</{name}>"


class Handler(HttpsHandler):
    """One connection."""

    # What cannot be read is still answered with a status line and headers, which HTTP/0.9 has not.
    default_request_version = "HTTP/1.0"
    timeout = SOCKET_SECONDS
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            body = self._read_body()
        except ApiError as error:
            self._send(error_answer(error), close=True)
            return
        path, _, query = self.path.partition("?")
        if path != "/":
            self._send(
                error_answer(
                    ApiError(
                        "InvalidAction.NotFound",
                        "Specified api is not found, please check your url and method.",
                        404,
                    )
                )
            )
            return
        try:
            result = self.server.around(
                action_of(query, body),
                lambda: answer(
                    self.server.cloud, self.command, query, body, self.headers.get("Content-Type") or ""
                ),
            )
        except Exception:
            log.exception("the emulator failed on a request")
            result = error_answer(
                ApiError(
                    "InternalError",
                    "The request processing has failed due to some unknown error, exception or failure.",
                    500,
                )
            )
        if result.lost:
            self.close_connection = True
            return
        self._send(result)

    def _read_body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding"):
            raise ApiError("MissingContentLength", "You must provide the Content-Length HTTP header.", 411)
        if not lengths:
            return b""
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            raise ApiError("ContentLengthDoesNotMatch", "Specified Content-Length is not valid.")
        length = int(lengths[0])
        if length > MAXIMUM_BODY:
            raise ApiError("RequestEntityTooLarge", f"The request body is over {MAXIMUM_BODY} bytes.", 413)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise ApiError("RequestTimeout", "The request body did not arrive in time.", 408) from None
        if len(body) != length:
            raise ApiError("ContentLengthDoesNotMatch", "The request body is shorter than Content-Length.")
        return body

    def _send(self, result: Answer, close: bool = False) -> None:
        self.send_response_only(result.status)
        self.send_header("Date", self.date_time_string(result.date))
        self.send_header("Content-Type", result.content_type)
        self.send_header("Content-Length", str(len(result.body)))
        self.send_header("x-acs-request-id", result.request_id)
        self.send_header("Connection", "close" if close or self.close_connection else "keep-alive")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(result.body)
        if close:
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: unknown methods, broken request lines, headers over its limits."""
        if code == 501:
            error = ApiError("UnsupportedHTTPMethod", "This http method is not supported.", 403)
        else:
            error = ApiError("InvalidRequest", "The request is not well formatted.", code)
        self._send(error_answer(error), close=True)


class Server(HttpsServer):
    """The listener with the cloud behind it."""

    def __init__(
        self,
        address: tuple[str, int],
        cloud: Cloud,
        certificate_file: str | Path,
        key_file: str | Path,
        around: Around,
        round_trip: float,
    ):
        self.cloud = cloud
        self.around = around
        super().__init__(address, Handler, certificate_file, key_file, round_trip)


@final
class Gateway:
    """The listener: `with Gateway(cloud, certificate, key) as gateway: ... gateway.port`."""

    def __init__(
        self,
        cloud: Cloud,
        certificate_file: str | Path,
        key_file: str | Path,
        host: str = "127.0.0.1",
        port: int = 0,
        around: Around = lambda action, answer_it: answer_it(),
        round_trip: float = 0.0,
    ):
        """`around` is given the action of each call and what answers it, and gives the answer.

        `round_trip` is how many seconds away the clients are.
        """
        self._server = Server((host, port), cloud, certificate_file, key_file, around, round_trip)
        self.traffic = self._server.traffic
        self.host = host
        self.port = self._server.server_port

    def start(self) -> None:
        """Answer requests in the background."""
        self._server.start()

    def stop(self) -> None:
        """Stop listening and end every connection; may be called twice."""
        self._server.stop()

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
