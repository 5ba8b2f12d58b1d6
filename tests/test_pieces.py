"""docs/pieces.md: each sample runs in an empty folder with the files that it names, and no others."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Learner, clean_environment

from lab import Lab

PAGE = (ROOT / "docs" / "pieces.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"^## (.+?)\n.*?^Files: (.*?)\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
PRINTS = {
    "A JWS": r"\['payload', 'protected', 'signature'\] [\w-]{43}",
    "The TXT value of a challenge": r"[\w-]{43}",
    "A CSR": r"-----BEGIN CERTIFICATE REQUEST-----.*",
    "An ACME client": r"https://\S+ pending\n(rejectedIdentifier|malformed) 40\d",
    "Alibaba Cloud calls": r"\['\S+', '\S+', '\S+'\]",
    "Wait for DNS": "",
    "A certificate, looked at": r"[0-9a-f]+ \[.*'\*\.example\.test'.*\] .*\nTrue",
    "A PFX": r"Help on function create_pfx.*",
    "Files": "True",
    "All together: a name proven": "ready and no error",
    "A lab for your tests": r"https://127\.0\.0\.1:\d+/dir .*",
}


def test_every_piece_of_the_table_has_a_sample():
    wanted = re.findall(r"^\| \[.+?\]\(#(.+?)\)", PAGE, re.MULTILINE)
    assert wanted == [re.sub(r"[^\w ]", "", title).lower().replace(" ", "-") for title, *_ in SAMPLES]


@pytest.mark.parametrize(("title", "files", "code"), SAMPLES, ids=[title for title, *_ in SAMPLES])
def test_a_piece_runs_alone(title: str, files: str, code: str, holder: Learner, lab: Lab, tmp_path: Path):
    if "5443" in code:
        holder.run("07")
    folder = tmp_path / "elsewhere"
    (folder / "common").mkdir(parents=True)
    (folder / "common" / "__init__.py").touch()
    for name in re.findall("`(.+?)`", files):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    (folder / ".lab").mkdir()
    shutil.copy(lab.ca_bundle, folder / ".lab" / "lab-root.pem")
    parts = (lab.directory_url.split("/")[2], *lab.nameservers, lab.alibaba_endpoint, lab.cdn_edge)
    for usual, actual in zip((14000, 5301, 5302, 5300, 5443), parts, strict=True):
        code = re.sub(rf"\b{usual}\b", actual.rpartition(":")[2], code)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean_environment(), **lab.environment(), "PAGER": "cat", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(PRINTS[title], run.stdout.strip(), re.DOTALL), run.stdout
