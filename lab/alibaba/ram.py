"""Access keys, STS tokens, nonces and what a key may do.

Known from ("doc" is an Alibaba help page, "seen" a real answer quoted in public):

    InvalidAccessKeyId.NotFound             404  seen: aliyun-exporter#36
    InvalidAccessKeyId.Inactive             400  doc 60629
    SignatureNonceUsed                      400  doc 48054
    MissingSecurityToken                    400  doc 53438; text seen: certbot-dns-aliyun#22
    InvalidSecurityToken.Malformed, .MismatchWithAccessKey, .Expired
                                            400  codes doc 53438, wording and status inferred
    Forbidden.RAM, on AliDNS                400  seen: ddns-go#1155, with AccessDeniedDetail
    Forbidden.RAM, on the others            403  seen on ECS, inferred for CDN and API Gateway
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .errors import ApiError

# A nonce is refused as long as a request that carries it could still be within the time window,
# which is open 15 minutes to either side of the server's clock.
NONCE_SECONDS = 2 * 15 * 60


@dataclass(frozen=True)
class AccessKey:
    """What a client needs to sign; the secrets stay out of its repr."""

    access_key_id: str
    access_key_secret: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)


@dataclass
class Grant:
    """What the service knows of an access key. `expires_at` is a time.time() moment, for STS tokens."""

    key: AccessKey
    account: str
    actions: frozenset[str] | None
    expires_at: float | None = None
    active: bool = True

    def allows(self, action: str) -> bool:
        """Whether the key may do "product:Action"; patterns as RAM has them, `cdn:*`."""
        return self.actions is None or any(fnmatchcase(action, pattern) for pattern in self.actions)


class Ram:
    """The access keys of every account."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grants: dict[str, Grant] = {}
        self._nonces: set[tuple[str, str]] = set()
        self._nonce_ages: deque[tuple[float, tuple[str, str]]] = deque()

    def add_access_key(self, account: str = "learner", actions: Iterable[str] | None = None) -> AccessKey:
        """A new random key; `actions` limits it, such as {"alidns:AddDomainRecord", "cdn:*"}."""
        key = AccessKey(f"LTAIlab{secrets.token_hex(8)}", secrets.token_urlsafe(24))
        return self._add(Grant(key, account, None if actions is None else frozenset(actions)))

    def add_sts_token(
        self, account: str = "learner", actions: Iterable[str] | None = None, lifetime: float = 3600
    ) -> AccessKey:
        """A new temporary key with its security token; `lifetime` in seconds."""
        key = AccessKey(
            f"STS.lab{secrets.token_hex(8)}", secrets.token_urlsafe(24), f"CAISlab{secrets.token_urlsafe(96)}"
        )
        allowed = None if actions is None else frozenset(actions)
        return self._add(Grant(key, account, allowed, expires_at=time.time() + lifetime))

    def disable_access_key(self, access_key_id: str) -> None:
        """Every further request with this key is refused as inactive."""
        with self._lock:
            self._grants[access_key_id].active = False

    def _add(self, grant: Grant) -> AccessKey:
        with self._lock:
            self._grants[grant.key.access_key_id] = grant
        return grant.key

    def find(self, access_key_id: str) -> Grant:
        """The grant of a known, active key."""
        with self._lock:
            grant = self._grants.get(access_key_id)
        if grant is None:
            raise ApiError("InvalidAccessKeyId.NotFound", "Specified access key is not found.", 404)
        if not grant.active:
            raise ApiError("InvalidAccessKeyId.Inactive", "Specified access key is disabled.")
        return grant

    def use_nonce(self, access_key_id: str, nonce: str) -> None:
        """Remember the nonce of a request whose signature holds; refuse it the second time."""
        now = time.monotonic()
        entry = (access_key_id, nonce)
        with self._lock:
            while self._nonce_ages and self._nonce_ages[0][0] < now - NONCE_SECONDS:
                self._nonces.discard(self._nonce_ages.popleft()[1])
            if entry in self._nonces:
                raise ApiError("SignatureNonceUsed", "Specified signature nonce was used already.")
            self._nonces.add(entry)
            self._nonce_ages.append((now, entry))

    def check_token(self, grant: Grant, token: str) -> None:
        """The security token must be the one issued with this key, and not expired."""
        issued = grant.key.security_token
        if issued is None and not token:
            return
        if not token:
            raise ApiError("MissingSecurityToken", "SecurityToken is mandatory for this action.")
        with self._lock:
            known = any(token == other.key.security_token for other in self._grants.values())
        if not known:
            raise ApiError("InvalidSecurityToken.Malformed", "Specified SecurityToken is malformed.")
        if token != issued:
            raise ApiError(
                "InvalidSecurityToken.MismatchWithAccessKey",
                "Specified SecurityToken mismatch with the AccessKey.",
            )
        if grant.expires_at is not None and time.time() >= grant.expires_at:
            raise ApiError("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")


def check_allowed(grant: Grant, action: str, status: int) -> None:
    """The key must be allowed to do "product:Action"."""
    if grant.allows(action):
        return
    raise ApiError(
        "Forbidden.RAM",
        "User not authorized to operate on the specified resource, or this API doesn't support RAM.",
        status,
        detail={
            "AccessDeniedDetail": {
                "AuthAction": action,
                "AuthPrincipalType": "AssumedRoleUser" if grant.key.security_token else "SubUser",
                "NoPermissionType": "ImplicitDeny",
                "PolicyType": "AccountLevelIdentityBasedPolicy",
            }
        },
    )
