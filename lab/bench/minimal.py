"""The least that a client can do from order to certificate: it asks nothing that can be known, and waits for nothing.

minimal.py TASK: a JSON file that holds what a client has beforehand, its account and its CSR, and more than any client
can know: the zone of the names, and how long the last name server takes to have a record. It prints nothing, checks
nothing and cleans nothing up. What it takes is what the others are measured against.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AT_ONCE = 10
PAUSE = 0.01  # seconds between two looks at the order


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    at_once = min(AT_ONCE, len(task["names"]))
    trust = ssl.create_default_context(cafile=task["ca_bundle"])
    pool = ThreadPoolExecutor(2 * AT_ONCE)
    # Every connection is made at the beginning, side by side, and so is every first nonce fetched.
    clouds = [pool.submit(connect, task["alibaba"], trust) for _ in range(at_once)]
    lines = [pool.submit(connect, urlsplit(task["directory"]).netloc, trust) for _ in range(at_once)]
    ca = Ca(lines[0].result(), task)
    directory = ca.get(task["directory"])
    others = [pool.submit(Ca(line.result(), task).fetch_nonce, directory) for line in lines[1:]]
    ca.fetch_nonce(directory)
    identifiers = [{"type": "dns", "value": name} for name in task["names"]]
    order, order_url = ca.post(directory["newOrder"], {"identifiers": identifiers})
    cas = [ca, *(other.result() for other in others)]

    def side_by_side(workers: list[Any], work: Callable[[Any, Any], Any], items: Iterable[Any]) -> list[Any]:
        """The results of work(worker, item), each worker at one item at a time."""
        items = list(items)
        shares = [items[start :: len(workers)] for start in range(len(workers))]
        parts = pool.map(lambda worker, share: [work(worker, item) for item in share], workers, shares)
        return [result for part in parts for result in part]

    authorizations = side_by_side(cas, lambda ca, url: ca.post(url, None)[0], order["authorizations"])
    challenges = [
        (authorization["identifier"]["value"], challenge)
        for authorization in authorizations
        for challenge in authorization["challenges"]
        if challenge["type"] == "dns-01"
    ]
    connections = [cloud.result() for cloud in clouds]
    side_by_side(connections, lambda cloud, pair: add_record(cloud, task, ca, *pair), challenges)
    time.sleep(task["lag"])
    side_by_side(cas, lambda ca, pair: ca.post(pair[1]["url"], {}), challenges)
    ca.wait(order_url, "ready")
    ca.post(order["finalize"], {"csr": b64url(Path(task["csr"]).read_bytes())})
    chain, _ = ca.post(ca.wait(order_url, "valid")["certificate"], None)
    Path(task["certificate"]).write_text(chain, encoding="ascii")
    # No polite end of any connection either.
    os._exit(0)


def connect(address: str, trust: ssl.SSLContext) -> http.client.HTTPSConnection:
    """A connection that is open already."""
    connection = http.client.HTTPSConnection(address, context=trust, timeout=60)
    connection.connect()
    return connection


class Ca:
    """One connection to the CA, with its nonce."""

    def __init__(self, connection: http.client.HTTPSConnection, task: dict[str, Any]) -> None:
        self._connection = connection
        self._kid = json.loads(Path(task["account"]).read_text(encoding="utf-8"))["account_url"]
        key = serialization.load_pem_private_key(Path(task["account_key"]).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._nonce = ""

    def get(self, url: str, method: str = "GET") -> Any:
        self._connection.request(method, urlsplit(url).path)
        return self._answer()[0]

    def fetch_nonce(self, directory: dict[str, str]) -> "Ca":
        self.get(directory["newNonce"], "HEAD")
        return self

    def post(self, url: str, payload: dict[str, Any] | None) -> tuple[Any, str]:
        """A signed POST: (the answer's body, its Location)."""
        protected = {"alg": "ES256", "kid": self._kid, "nonce": self._nonce, "url": url}
        header, body = encode(protected), "" if payload is None else encode(payload)
        r, s = decode_dss_signature(self._key.sign(f"{header}.{body}".encode(), ec.ECDSA(hashes.SHA256())))
        signature = b64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        text = json.dumps({"protected": header, "payload": body, "signature": signature})
        self._connection.request("POST", urlsplit(url).path, text, {"Content-Type": "application/jose+json"})
        return self._answer()

    def wait(self, order_url: str, status: str) -> Any:
        while True:
            order, _ = self.post(order_url, None)
            if order["status"] == status:
                return order
            assert order["status"] != "invalid", order
            time.sleep(PAUSE)

    def thumbprint(self) -> str:
        point = self._key.public_key().public_numbers()
        x, y = (b64url(number.to_bytes(32, "big")) for number in (point.x, point.y))
        jwk = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
        return b64url(hashlib.sha256(jwk.encode()).digest())

    def _answer(self) -> tuple[Any, str]:
        response = self._connection.getresponse()
        text = response.read().decode()
        self._nonce = response.headers.get("Replay-Nonce", self._nonce)
        assert response.status < 400, text
        body = json.loads(text) if text and "json" in response.headers.get("Content-Type", "") else text
        return body, response.headers.get("Location", "")


def add_record(
    cloud: http.client.HTTPSConnection, task: dict[str, Any], ca: Ca, domain: str, challenge: dict[str, str]
) -> None:
    """AddDomainRecord for a challenge."""
    value = b64url(hashlib.sha256(f"{challenge['token']}.{ca.thumbprint()}".encode()).digest())
    rr = f"_acme-challenge.{domain}".removesuffix(f".{task['zone']}")
    call(cloud, task, Action="AddDomainRecord", DomainName=task["zone"], RR=rr, Type="TXT", Value=value)


def call(cloud: http.client.HTTPSConnection, task: dict[str, Any], **parameters: str) -> None:
    """A call of Alibaba Cloud DNS, signed (RPC signature, version 1.0)."""
    parameters |= {
        "AccessKeyId": task["access_key_id"],
        "Format": "JSON",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureNonce": uuid.uuid4().hex,
        "SignatureVersion": "1.0",
        "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "Version": "2015-01-09",
    }
    query = "&".join(f"{percent(name)}={percent(text)}" for name, text in sorted(parameters.items()))
    secret = f"{task['access_key_secret']}&".encode()
    digest = hmac.new(secret, f"POST&%2F&{percent(query)}".encode(), hashlib.sha1).digest()
    form = f"{query}&Signature={percent(base64.b64encode(digest).decode())}"
    cloud.request("POST", "/", form, {"Content-Type": "application/x-www-form-urlencoded"})
    response = cloud.getresponse()
    text = response.read()
    assert response.status == 200, text


def percent(text: str) -> str:
    return quote(text, safe="-_.~")


def encode(value: dict[str, Any]) -> str:
    return b64url(json.dumps(value).encode())


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
