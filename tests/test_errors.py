"""docs/errors.md and the code say the same: every problem type, every code, every failure of ours."""

import ast
import re

import pytest
from conftest import ROOT, SCRIPTS

from common import acme, alibaba

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
LOCAL = PAGE.partition("## On this side")[2]
KINDS = {"Failure", "Usage", "Unreachable", "Locked", "Waiting"}


def table(heading: str) -> dict[str, str]:
    """First cell without its backticks -> last cell, of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|.* \| (.+?) \|$", section, re.MULTILINE)
    return {first.strip("`"): last for first, last in rows[1:]}


def literals(node: ast.expr) -> list[str]:
    """The constant pieces of a string, an f-string, or a conditional."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def failures() -> list[tuple[str, list[str], list[str]]]:
    """Where a failure of ours is made, the constant pieces of what it says, and of what to do."""
    found = []
    for module in [*SCRIPTS.values(), *sorted((ROOT / "common").glob("*.py"))]:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                what = literals(node.args[0])
                remedy = literals(node.args[1]) if len(node.args) > 1 else []
                found.append((f"{module.name}:{node.lineno}", what, remedy))
    return found


def longest(pieces: list[str]) -> str:
    return max(pieces, key=len, default="").strip(" :;,.\n")


def words(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip()


def test_every_problem_type_is_on_the_page_with_its_remedy():
    assert table("The CA's problems") == acme.REMEDIES


def test_every_code_is_on_the_page_with_its_remedy():
    assert table("Alibaba Cloud's codes") == alibaba.REMEDIES


def test_every_problem_type_of_the_rfcs_has_a_remedy():
    # RFC 8555 section 6.7, RFC 9773 section 7, draft-ietf-acme-profiles.
    registered = [
        *(
            "accountDoesNotExist",
            "alreadyRevoked",
            "badCSR",
            "badNonce",
            "badPublicKey",
            "badRevocationReason",
        ),
        *("badSignatureAlgorithm", "caa", "compound", "connection", "dns", "externalAccountRequired"),
        *("incorrectResponse", "invalidContact", "malformed", "orderNotReady", "rateLimited"),
        *("rejectedIdentifier", "serverInternal", "tls", "unauthorized", "unsupportedContact"),
        *("unsupportedIdentifier", "userActionRequired", "alreadyReplaced", "invalidProfile"),
    ]
    assert set(registered) == set(acme.REMEDIES)


@pytest.mark.parametrize(("where", "what", "remedy"), failures(), ids=[where for where, *_ in failures()])
def test_what_a_failure_says_and_advises_is_on_the_page(where: str, what: list[str], remedy: list[str]):
    said, advised = longest(what), longest(remedy)
    # Settings say what is wrong in words of their own ("[cdn] domains: …"); the page has one row for all.
    if len(said) > 8:
        assert words(said) in words(LOCAL), f"docs/errors.md has no row that says: {said}"
    if len(advised) > 16:
        assert words(advised) in words(PAGE), f"docs/errors.md does not advise: {advised}"
