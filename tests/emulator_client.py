"""Two clients for the emulator's tests: Alibaba's own SDK, and requests signed here by hand.

The signature is written a second time on purpose: the emulator's own would agree with its own mistakes.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import importlib
import ipaddress
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import requests
from aliyunsdkcore.auth.credentials import StsTokenCredential
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.http import protocol_type
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lab.alibaba import AccessKey, Cloud, Gateway

VERSIONS = {"alidns": "2015-01-09", "cdn": "2018-05-10", "cloudapi": "2016-07-14"}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass
class Emulator:
    """A running emulator, with one zone, one key that may do everything, and both clients."""

    cloud: Cloud
    gateway: Gateway
    ca_file: Path
    key: AccessKey

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"

    def sdk(
        self, product: str, action: str, key: AccessKey | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """The JSON answer to an action asked through Alibaba's SDK; its errors are ServerException."""
        key = key or self.key
        if key.security_token:
            credential = StsTokenCredential(key.access_key_id, key.access_key_secret, key.security_token)
            client = AcsClient(region_id="cn-hangzhou", credential=credential, verify=str(self.ca_file))
        else:
            client = AcsClient(
                key.access_key_id, key.access_key_secret, "cn-hangzhou", verify=str(self.ca_file)
            )
        version = "v" + VERSIONS[product].replace("-", "")
        module = importlib.import_module(f"aliyunsdk{product}.request.{version}.{action}Request")
        request = getattr(module, f"{action}Request")()
        request.set_endpoint(self.address)
        request.set_protocol_type(protocol_type.HTTPS)
        for name, value in parameters.items():
            getattr(request, f"set_{name}")(value)
        try:
            return json.loads(client.do_action_with_exception(request))
        finally:
            client.session.close()

    def send(
        self, query: str = "", body: str | bytes | None = None, method: str = "GET", **more: Any
    ) -> requests.Response:
        """A raw request."""
        session = requests.Session()
        session.trust_env = False
        headers = more.pop("headers", {})
        if body is not None:
            headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        with session:
            return session.request(
                method,
                f"https://{self.address}/?{query}",
                data=body,
                headers=headers,
                verify=str(self.ca_file),
                timeout=30,
                **more,
            )

    def call(
        self,
        action: str,
        key: AccessKey | None = None,
        method: str = "GET",
        form: dict[str, str] | None = None,
        product: str = "alidns",
        **parameters: str,
    ) -> requests.Response:
        """An action asked with a request that is signed here; `form` goes into the body."""
        query = common_parameters(key or self.key, action, product) | parameters
        form = form or {}
        query["Signature"] = sign(method, query | form, (key or self.key).access_key_secret)
        return self.send(urlencode(query), urlencode(form) if form else None, method)


def common_parameters(key: AccessKey, action: str, product: str = "alidns") -> dict[str, str]:
    """What every RPC request carries, except its signature."""
    parameters = {
        "Format": "JSON",
        "Version": VERSIONS[product],
        "Action": action,
        "AccessKeyId": key.access_key_id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": timestamp(),
    }
    return parameters | ({"SecurityToken": key.security_token} if key.security_token else {})


def timestamp(seconds: float = 0) -> str:
    """The time, or a time that many seconds from now, as Alibaba writes it."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def sign(method: str, parameters: dict[str, str], secret: str) -> str:
    """The RPC signature, version 1.0."""
    encode = lambda text: quote(text, safe="~")  # noqa: E731
    query = "&".join(f"{encode(name)}={encode(parameters[name])}" for name in sorted(parameters))
    text = f"{method}&{encode('/')}&{encode(query)}"
    return base64.b64encode(hmac.digest(f"{secret}&".encode(), text.encode(), hashlib.sha1)).decode()


@contextmanager
def running_emulator(ca_file: Path, key_file: Path) -> Iterator[Emulator]:
    """An emulator with an empty cloud but for the zone example.test and a key that may do everything."""
    cloud = Cloud()
    cloud.dns.add_zone("example.test")
    with Gateway(cloud, ca_file, key_file) as gateway:
        yield Emulator(cloud, gateway, ca_file, cloud.ram.add_access_key())


def make_tls_files(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, which is its own CA file, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emulator")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "tls.pem", folder / "tls.key"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_file, key_file


class Issuer:
    """A root and an intermediate that issue certificates for the tests."""

    def __init__(self) -> None:
        self.root_key: PrivateKey = ec.generate_private_key(ec.SECP256R1())
        self.root = build("Root", self.root_key, "Root", self.root_key, ca=True)
        self.intermediate_key: PrivateKey = ec.generate_private_key(ec.SECP256R1())
        self.intermediate = build("Intermediate", self.intermediate_key, "Root", self.root_key, ca=True)

    def issue(self, *names: str, key: PrivateKey | None = None, days: int = 90) -> tuple[str, str]:
        """(leaf and intermediate, key in its traditional form), both PEM."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        leaf = build(names[0], key, "Intermediate", self.intermediate_key, names=names, days=days)
        pem = [certificate.public_bytes(Encoding.PEM).decode() for certificate in (leaf, self.intermediate)]
        return "".join(pem), key_pem(key)


def key_pem(key: PrivateKey, form: PrivateFormat = PrivateFormat.TraditionalOpenSSL) -> str:
    """A private key in PEM."""
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def build(
    subject: str,
    key: PrivateKey,
    issuer: str,
    issuer_key: PrivateKey,
    names: tuple[str, ...] = (),
    ca: bool = False,
    days: int = 90,
) -> x509.Certificate:
    """A certificate; with negative days one that has expired."""
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
    return builder.sign(issuer_key, hashes.SHA256())
