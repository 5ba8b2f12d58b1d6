"""What the tests share: the guard around the network, a lab, and a learner who runs the scripts in it."""

import collections
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "tests" / "guard"
for folder in (str(ROOT), str(GUARD)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import sitecustomize  # noqa: E402, F401 - from here on, in this process too, only loopback can be reached

from common import acme, config, show  # noqa: E402
from common import x509 as our_x509  # noqa: E402
from common.state import State  # noqa: E402
from lab import Lab  # noqa: E402

SCRIPTS = {path.name[:2]: path for path in sorted(ROOT.glob("[0-9][0-9]_*.py"))}
PASSWORD = "a password of the tests' own"  # noqa: S105


@dataclass(frozen=True)
class Run:
    """What one script did."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Learner:
    """A person in a folder with a settings file, who runs scripts by their numbers."""

    def __init__(self, folder: Path, lab: Lab, **sections: Any) -> None:
        self.folder = folder
        self.lab = lab
        self.ini = folder / "acme.ini"
        self.state = folder / "state"
        self.environment = lab.environment()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pfx-password.txt").write_text(PASSWORD + "\n")
        self.settings(**sections)

    def settings(self, domains: Any = ("example.test", "*.example.test"), **sections: Any) -> None:
        """Write the settings anew: domains, then sections as of Lab.write_settings()."""
        iis = {"windows": "2022", "password_file": "pfx-password.txt", **sections.pop("iis", {})}
        cdn = {"domains": "www.example.test", **sections.pop("cdn", {})}
        self.lab.write_settings(self.ini, domains=domains, state="state", iis=iis, cdn=cdn, **sections)

    def start(self, number: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Begin a script and leave it running."""
        return subprocess.Popen(
            [sys.executable, str(SCRIPTS[number]), "--config", str(self.ini), *arguments],
            cwd=self.folder,
            env={**clean_environment(), **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, number: str, *arguments: str, code: int | None = 0, **environment: str) -> Run:
        """Run a script to its end; the exit code must be `code`, or may be any for None."""
        process = self.start(number, *arguments, **environment)
        out, err = process.communicate(timeout=120)
        run = Run(process.returncode, out, err)
        assert "Traceback" not in run.all, run.all
        assert code in (None, run.code), f"{SCRIPTS[number].name} exited {run.code}, not {code}:\n{run.all}"
        return run

    def series(self, *numbers: str) -> dict[str, Run]:
        """Run several scripts, each of which must succeed."""
        return {number: self.run(number) for number in numbers}

    def json(self, name: str) -> Any:
        """A JSON file of the state folder."""
        return json.loads((self.state / name).read_text())

    def chain(self) -> list[x509.Certificate]:
        """The certificates of fullchain.pem, leaf first."""
        return x509.load_pem_x509_certificates((self.state / "fullchain.pem").read_bytes())

    def serial(self) -> str:
        """The leaf's serial number, as the scripts print it."""
        text = f"{self.chain()[0].serial_number:x}"
        return "0" * (len(text) % 2) + text


def load_script(number: str) -> Any:
    """A script as a module, for tests of one function of it."""
    spec = importlib.util.spec_from_file_location(f"script_{number}", SCRIPTS[number])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def open_account(learner: Learner) -> None:
    """What 01 and 03 do, without starting two interpreters."""
    pem = load_script("01").create_account_key("ec256")
    key = serialization.load_pem_private_key(pem, password=None)
    ca = acme.Client(learner.lab.directory_url, key, ca_bundle=str(learner.lab.ca_bundle))
    url = load_script("03").new_account(ca, {"termsOfServiceAgreed": True}).location
    state = State(learner.state)
    state.write("account.key", pem)
    account = {"account_url": url, "directory": learner.lab.directory_url, "contact": [], "status": "valid"}
    state.write_json("account.json", account)


def dns_contents(lab: Lab) -> set[tuple[str, ...]]:
    """Every record of every zone, with its id: so that a record deleted and made anew shows."""
    dns = lab.cloud.dns
    return {
        (zone, r.record_id, r.rr, r.type, r.value) for zone in dns.zone_names() for r in dns.records(zone)
    }


def orders(lab: Lab) -> int:
    """How many orders the CA has taken, from its log."""
    return (lab.directory / "pebble.log").read_text().count("Added order")


def served(address: str, name: str) -> str:
    """The serial that a server hands out for a name."""
    host, _, port = address.rpartition(":")
    return our_x509.serial_hex(our_x509.served_certificate(name, (host, int(port))))


def key_of(path: Path) -> our_x509.PrivateKey:
    return our_x509.load_private_key(path.read_bytes(), path)


def account_of(learner: Learner, key: our_x509.PrivateKey) -> str | None:
    """The account that the CA knows a key by, asked by the test itself; None when there is none."""
    ca = acme.connect(config.load(learner.ini), key)
    try:
        return ca.post(ca.url("newAccount"), {"onlyReturnExisting": True}).location
    except acme.Problem as problem:
        assert problem.type == "accountDoesNotExist"
        return None


def clean_environment() -> dict[str, str]:
    """The environment without anything that could steer a script, and with the guard on Python's path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("ALIBABA_", "ALIYUN_", "ALICLOUD_", "ACME_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }
    # No metadata service of a cloud machine, and no profile of whoever runs the tests.
    home = {"ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true", "ALIBABA_CLOUD_CLI_PROFILE_DISABLED": "true"}
    return {**kept, **home, "PYTHONPATH": str(GUARD), "PYTHONDONTWRITEBYTECODE": "1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix", action="store_true", help="try every fault at every place (tests/test_faults.py)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The matrix as a table: for each fault, how many cells were tried and how many held."""
    if not terminalreporter.config.getoption("matrix"):
        return
    tried: collections.Counter[str] = collections.Counter()
    held: collections.Counter[str] = collections.Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for fault in (value for name, value in report.user_properties if name == "fault"):
                tried[fault] += 1
                held[fault] += outcome == "passed"
    from fault_matrix import table

    terminalreporter.write_line("\n" + table(tried, held))


@pytest.fixture(autouse=True)
def narration_from_the_start() -> None:
    """No test hears, or does not hear, what an earlier one in this process has settled."""
    show.start("")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests that change nothing others rely on; its name servers lag, each by its own time."""
    with Lab(tmp_path_factory.mktemp("lab"), lags=(0.0, 0.3)) as running:
        yield running


@pytest.fixture
def learner(lab: Lab, tmp_path: Path) -> Learner:
    return Learner(tmp_path / "learner", lab)


@pytest.fixture(scope="session")
def issued(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A learner who holds a certificate already. Take holder for a copy that may be changed."""
    learner = Learner(tmp_path_factory.mktemp("issued"), lab)
    learner.series("01", "02", "03", "04", "05", "06")
    return learner


@pytest.fixture
def holder(issued: Learner, tmp_path: Path) -> Learner:
    """A learner of one's own who holds a certificate: a copy of the issued one."""
    copy = Learner(tmp_path / "holder", issued.lab)
    shutil.copytree(issued.state, copy.state, symlinks=True)
    return copy


@pytest.fixture
def orderer(lab: Lab, tmp_path: Path) -> Callable[..., Learner]:
    """Make learners who have an order for some domains and nothing proven yet: 05 is next.

    Each has an account of one's own: Pebble, told to reuse no authorization of an account, still does one time in
    a hundred.
    """
    made: list[Learner] = []

    def make(*domains: str, **sections: Any) -> Learner:
        sections = {"certificate": {"key_type": "ec256"}, **sections}
        learner = Learner(tmp_path / f"orderer{len(made)}", lab, domains=domains, **sections)
        made.append(learner)
        open_account(learner)
        learner.series("02", "04")
        return learner

    return make


@pytest.fixture
def new_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Make labs with options of their own; they stop with the test."""
    running: list[Lab] = []

    def make(**options: Any) -> Lab:
        lab = Lab(tmp_path / f"lab{len(running)}", **options)
        running.append(lab)
        lab.start()
        return lab

    yield make
    for lab in running:
        lab.stop()
