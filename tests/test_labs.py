"""The lab book, docs/labs: every command of every page typed in order, and what is printed compared with the page.

After a change of what the scripts print, REWRITE_SAMPLES=1 python3 lab test tests/test_labs.py writes the pages anew.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, clean_environment
from debian import program
from test_lab_up import ANY_PORTS, Up

PAGES = ROOT / "docs" / "labs"
REWRITE = os.environ.get("REWRITE_SAMPLES") == "1"
# What `lab up` listens on when it may choose: CA, its management, name servers, Alibaba Cloud, edges.
USUAL_PORTS = (14000, 15000, 5301, 5302, 5300, 5443, 5444)
USUAL_FOLDER = "/home/learner/acme"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the pages are written for a POSIX shell")


def pages_in_order() -> list[Path]:
    """From Lab 00 on, where "Next" leads."""
    pages = [PAGES / "00.md"]
    while match := re.search(r"^Next: \[Lab \d\d\]\((\d\d\.md)\)", pages[-1].read_text(), re.MULTILINE):
        pages.append(PAGES / match[1])
    return pages


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def printed(page: Path) -> str:
    match = re.search(r"<!-- prints: \d\d -->\n```text\n(.*?)```", page.read_text(), re.DOTALL)
    assert match, page
    return match[1]


def masked(text: str) -> set[str]:
    """The lines of an output with all that differs from run to run made equal."""
    text = text.replace(USUAL_FOLDER, "FOLDER")
    text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
    text = re.sub(
        r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}|[\w-]{24}…[\w-]{8}|(?<![\w-])[\w-]{20,}", "ID", text
    )
    text = re.sub(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?Z?)?", "DATE", text)
    # Ids of accounts, certificates and records; what a CA calls itself; lengths, durations and versions.
    text = re.sub(r"\b[0-9a-f]{5,19}(?=\b|_)|\b\d+(\.\d+)+\b|\b\d+(?= characters| s\b)", "N", text)
    lines = (line.strip().rstrip(",") for line in text.splitlines())
    return {line for line in lines if not varies(line)}


def varies(line: str) -> bool:
    """Whether a line is there in one run and not in another: waits, polls, and whichever authorization comes first."""
    polled = re.match(r"--> \w+ \S+ .*<-- ", line)
    offered = re.search(r'-01"|"wildcard"|"identifier": |"profile|"DomainName"|"RR"', line)
    return bool(polled or offered or re.match("waiting for|name +_acme-", line))


def only_the_outline(text: str) -> str:
    """The headings of 11's steps and what came of them: the rest is on the other pages."""
    kept = re.findall(r"^(?:\d\d  \S.*|    (?:due|serial|served|ok) .*|result .*)\n", text, re.MULTILINE)
    return "".join(kept)


def headings(text: str) -> list[str]:
    return [line.split("  ")[1] for line in text.splitlines() if re.match(r"\d\d  \S", line)]


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The scripts in a folder of their own, and `lab up` for it."""
    folder = tmp_path_factory.mktemp("classroom")
    shutil.copytree(ROOT / "common", folder / "common")
    for file in (*SCRIPTS.values(), ROOT / "requirements.txt"):
        shutil.copy(file, folder)
    up = Up(folder, *ANY_PORTS)
    up.read_until("Ctrl-C")
    yield up
    up.end(signal.SIGINT)


def test_every_page_says_what_it_does_and_leads_to_the_next():
    pages = pages_in_order()
    assert {page.stem for page in pages} == SCRIPTS.keys()
    assert sorted(PAGES.glob("*.md")) == sorted(pages)
    for page in pages:
        text = page.read_text()
        first, *_ = blocks(page)
        assert first.split()[:2] == ["python", SCRIPTS[page.stem].name]
        for part in (
            "**In this lab you will**",
            "**What you hold now.**",
            "**See for yourself:**",
            "**Exercises.**",
        ):
            assert part in text, f"{page.name}: {part}"


def test_the_labs_work_as_written_and_print_what_the_pages_show(classroom: Up):
    for tool, package in (("dig", "bind9-dnsutils"), ("curl", "curl"), ("openssl", "openssl")):
        program(tool, package)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean_environment(), "PATH": path}
    ports = dict(zip(USUAL_PORTS, classroom.ports, strict=False))
    for page in pages_in_order():
        for number, block in enumerate(blocks(page)):
            script = block
            for usual, actual in ports.items():
                script = re.sub(rf"\b{usual}\b", str(actual), script)
            run = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", script],
                cwd=classroom.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert run.returncode == 0, f"{page.name}: {block}\n{run.stdout}"
            if number > 0:
                continue
            told = run.stdout.replace(str(classroom.folder), USUAL_FOLDER)
            if page.stem == "11":
                told = only_the_outline(told)
            for usual, actual in ports.items():
                told = re.sub(rf"\b127\.0\.0\.1:{actual}\b", f"127.0.0.1:{usual}", told)
            if REWRITE:
                page.write_text(page.read_text().replace(f"text\n{printed(page)}", f"text\n{told}"))
            assert headings(printed(page)) == headings(told)
            lacking = masked(printed(page)) - masked(told)
            assert not lacking, f"{page.name} shows what is not printed: {lacking}\n{told}"
