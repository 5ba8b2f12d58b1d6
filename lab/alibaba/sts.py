"""STS 2015-04-01 (sts.aliyuncs.com): who the caller is.

Known from ("doc" is an Alibaba help page):

    fields, and that every caller may ask   doc 43767, GetCallerIdentity
    UserId is not there for a role          doc 43767
    the numbers of accounts and users       the lab's choice: made from the account's name
"""

from __future__ import annotations

import zlib
from typing import Any

from .errors import Action, Parameters
from .ram import Ram


class Sts:
    """Tells a caller whose access key signed."""

    # Without a prefix: RAM cannot forbid this.
    PRODUCT, VERSION, RAM_PREFIX, FORBIDDEN_STATUS = "Sts", "2015-04-01", "", 403

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self.actions: dict[str, Action] = {"GetCallerIdentity": self._get_caller_identity}

    def host(self, parameters: Parameters) -> str:
        """The HostId of an answer."""
        return "sts.aliyuncs.com"

    def _get_caller_identity(self, account: str, parameters: Parameters) -> dict[str, Any]:
        key = self._ram.find(parameters["AccessKeyId"]).key
        account_id, user_id = number(account), number(key.access_key_id)
        if key.security_token:
            arn, kind = f"acs:ram::{account_id}:assumed-role/{account}/lab", "AssumedRoleUser"
            return {
                "IdentityType": kind,
                "AccountId": account_id,
                "PrincipalId": f"{user_id}:lab",
                "Arn": arn,
                "RoleId": user_id,
            }
        return {
            "IdentityType": "RAMUser",
            "AccountId": account_id,
            "PrincipalId": user_id,
            "UserId": user_id,
            "Arn": f"acs:ram::{account_id}:user/{account}",
        }


def number(name: str) -> str:
    """A number of 16 digits, as Alibaba's accounts have; the same for the same name."""
    return str(10**15 + zlib.crc32(name.encode()))
