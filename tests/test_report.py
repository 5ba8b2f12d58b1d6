"""`python3 lab report`: a trace, and a state folder, as one file. How it looks in a browser is tests/test_page.py's."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Learner, clean_environment

from common.explain import EXPLANATIONS
from lab.page import report


def make_report(state: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "lab"), "report", str(state), *options],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )


def picture(html: str) -> Any:
    """The data in a report."""
    found = re.search(r'<script type="application/json" id="picture">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def write_trace(state: Path, *lines: str) -> None:
    state.mkdir()
    (state / "trace.jsonl").write_text("\n".join(lines) + "\n")


def test_a_report_holds_the_whole_series_and_the_world_after_it(learner: Learner):
    learner.series("01", "02", "03", "04", "05", "06", "07", "09")
    run = make_report(learner.state)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{learner.state / 'report.html'}\n"
    told = picture((learner.state / "report.html").read_text())
    trace = (learner.state / "trace.jsonl").read_text().splitlines()
    assert told["records"] == [json.loads(line) for line in trace]
    assert {record["kind"] for record in told["records"]} == {"acme", "alibaba", "dns", "tls", "wrote"}
    assert [(c["serial"], c["status"], c["current"]) for c in told["world"]["certificates"]] == [
        (learner.serial(), "revoked", True)
    ]
    assert [(e["domain"], e["locked"]) for e in told["world"]["edges"]] == [("www.example.test", True)]
    assert told["scripts"]["04_new_order"].startswith("Order a certificate")
    assert told["explanations"] == EXPLANATIONS


def test_the_page_names_no_explanation_that_there_is_not():
    topics = re.findall(r'topic: "([^"]+)"', (report.PAGE / "page.js").read_text())
    assert "challenges" in topics
    assert set(topics) <= set(EXPLANATIONS)


def test_a_report_needs_nothing_from_anywhere_and_allows_nothing(tmp_path: Path):
    write_trace(tmp_path / "state", '{"kind": "wrote", "file": "account.key"}')
    html = make_report(tmp_path / "state", "-o", str(tmp_path / "here.html")).stdout
    assert html == f"{tmp_path / 'here.html'}\n"
    html = (tmp_path / "here.html").read_text()
    fetched = re.findall(r'(?:src|href)="([^"#]*)"', html)
    assert fetched == ["data:,"]
    assert "@import" not in html and not re.search(r"\burl\(", html)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy and policy[1].startswith("default-src 'none'") and "unsafe" not in policy[1]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert inside
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]


def test_what_a_server_said_does_not_become_markup(tmp_path: Path):
    hostile = '</script><script>alert(1)</script><!--<img src="https://elsewhere.example/">'
    write_trace(tmp_path / "state", json.dumps({"kind": "failure", "what": hostile, "remedy": hostile}))
    make_report(tmp_path / "state")
    html = (tmp_path / "state" / "report.html").read_text()
    assert html.count("</script>") == 2
    assert picture(html)["records"][0]["what"] == hostile


def test_lines_that_a_crash_cut_off_or_that_are_no_objects_are_passed_over():
    lines = b'{"kind": "wrote"}\n{"kind": "ac\n[1]\n\xff\xfe\n\n{"kind": "failure"}\n' + b"[" * 10_000
    assert report.read_trace(lines) == [{"kind": "wrote"}, {"kind": "failure"}]


@pytest.mark.parametrize("there", [True, False])
def test_without_a_trace_it_says_so(there: bool, tmp_path: Path):
    if there:
        (tmp_path / "state").mkdir()
    run = make_report(tmp_path / "state")
    assert run.returncode == 2
    assert "trace.jsonl is missing" in run.stderr and "Traceback" not in run.stderr


def test_files_that_are_not_what_their_names_say_are_passed_over(tmp_path: Path):
    write_trace(tmp_path / "state")
    (tmp_path / "state" / "certificate.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")
    (tmp_path / "state" / "revoked.json").write_text("[]")
    assert report.certificates(tmp_path / "state") == []
