"""Deactivate the account, for good. Certificates stay valid; nothing more can be ordered.

Call    POST account
RFC     8555 section 7.3.6
Reads   state/account.key, state/account.json
Writes  state/account.json
Run     python 13_deactivate_account.py
Lab     docs/labs/13.md, 5 minutes; part 3
Next    none; another account begins with another state folder
"""

import argparse
import sys

from common import acme, config, show
from common.failure import Usage


def deactivate(ca: acme.Client, account_url: str) -> str:
    """End an account. There is no way back; the CA answers with its last status."""
    return ca.post(account_url, {"status": "deactivated"}).object(status=str)["status"]


def deactivated_before(settings: config.Settings) -> str | None:
    """The account's URL when an earlier run has ended it at this CA."""
    account = settings.state.read_json("account.json", "03_new_account.py", account_url=str)
    here = account.get("directory") == settings.acme.directory
    return account["account_url"] if here and account.get("status") == "deactivated" else None


def sure(account_url: str) -> bool:
    """Ask the person at the keyboard."""
    if not sys.stdin.isatty():
        raise Usage("there is no one to ask whether you are sure", "add --yes")
    show.ask(f"This ends {account_url} for good. Type yes to go on:")
    return sys.stdin.readline().strip() == "yes"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def main(settings: config.Settings, yes: bool = False) -> None:
    if ended := deactivated_before(settings):
        show.facts(status="deactivated already")
        show.result(ended)
        return
    ca = acme.account_client(settings)
    account = acme.load_account(settings)
    account_url = account["account_url"]

    show.step("account", "RFC 8555 section 7.1.2")
    try:
        ca.post_as_get(account_url)
    except acme.Problem as problem:
        if problem.type != "unauthorized" or account.get("status") != "deactivating":
            raise
        # An earlier run ended the account, and the answer was lost.
        account["status"] = "deactivated"
    else:
        if not yes and not sure(account_url):
            show.say("nothing was changed")
            return
        show.step("account, deactivated", "RFC 8555 section 7.3.6")
        # On disk before the CA hears of it: afterwards the CA refuses this account even to say so.
        settings.state.write_json("account.json", {**account, "status": "deactivating"})
        account["status"] = deactivate(ca, account_url)
    show.wrote(settings.state.write_json("account.json", account))
    show.facts(status=account["status"])
    show.result(account_url)


if __name__ == "__main__":
    config.run(main, __doc__, add_options)
