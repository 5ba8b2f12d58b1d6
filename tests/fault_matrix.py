"""The matrix script × fault: what is tried, and what must hold whatever the fault is."""

import json
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import PASSWORD, SCRIPTS, Learner, Run, clean_environment, dns_contents, load_script
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from fork_server import TOO_LONG, ForkServer

from common import acme, config, jws, show, x509
from common.state import State
from lab import Lab

DOMAINS = ("example.test", "*.example.test", "shop.workshop.com.test")
CDN_DOMAIN, API_DOMAIN = "www.example.test", "api.example.test"
ARGUMENTS = {"11": ["--force"], "13": ["--yes"]}
# Seconds on the script's own clock. The longest waits of a script are five minutes, and some have two of them.
DEADLINE = 900.0
# Where a fault makes somebody wait for an answer that does not come, nobody should wait half a minute for that.
IMPATIENT = {
    "common.acme.TIMEOUT": [2, 0.7],
    "common.acme.ANSWER_TIMEOUT": 1.5,
    "common.alibaba.TIMEOUT": [2, 0.7],
    "common.dns.QUERY_TIMEOUT": 0.2,
}


@dataclass(frozen=True)
class Cell:
    """One script with one fault.

    fault: as of lab.faults; orders: how many the CA may get, from here to the end of the job
    cause: what an error must say, a regular expression; codes: the exit codes that may be
    """

    script: str
    fault: str
    orders: int = 0
    cause: str = ""
    codes: tuple[int, ...] = (0, 1, 2)

    @property
    def name(self) -> str:
        """The fault's name, without how often and where."""
        return re.split(r"[=@*%]", self.fault)[0]

    def __str__(self) -> str:
        return f"{self.script} {self.fault}"


class Workshop:
    """A lab, and learners who are just before a script, made without running those that come before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(folder / "lab", authz_reuse=100, chain_length=2)
        self.lab.start()
        self.server = ForkServer(clean_environment())
        self.scripts = {number: load_script(number) for number in ("01", "02", "03", "04", "05", "06")}
        self.made = 0
        show.start("tests", quiet=True)
        self._account_key = self.scripts["01"].create_account_key("ec256")
        # An account that has proven all names: its orders are ready at once.
        self.proven = self.learner()
        self.open_account(self.proven)
        self.request(self.proven)
        self.order(self.proven)
        assert self.run(self.proven, "05").code == 0
        self.issued = self.learner()
        shutil.copytree(self.proven.state, self.issued.state)
        assert self.run(self.issued, "06").code == 0

    def close(self) -> None:
        self.server.stop()
        self.lab.stop()

    def learner(self, **sections: Any) -> Learner:
        self.made += 1
        learner = Learner(self.folder / f"learner{self.made}", self.lab)
        sections = {
            "certificate": {"key_type": "ec256"},
            "dns": {"timeout": "20"},
            "cdn": {"domains": CDN_DOMAIN},
            **sections,
        }
        learner.settings(domains=DOMAINS, **sections)
        return learner

    def before(self, script: str) -> Learner:
        """A learner for whom this script is next."""
        learner = self.learner()
        state = State(learner.state)
        if script in ("02", "03"):
            state.write("account.key", self.scripts["01"].create_account_key("ec256"))
        elif script == "04":
            shutil.copytree(self.proven.state, learner.state)
            state.remove("pending/order.json")
        elif script in ("05", "12", "13"):
            self.open_account(learner)
            self.request(learner)
            self.order(learner)
        elif script == "06":
            shutil.copytree(self.proven.state, learner.state)
            self.request(learner)
            self.order(learner)
        elif script in ("07", "08", "10"):
            shutil.copytree(self.issued.state, learner.state, symlinks=True)
            self.lab.cloud.cdn.add_domain(CDN_DOMAIN)
            self.lab.cloud.apigateway.bind_domain(self.lab.group_id, API_DOMAIN)
        elif script in ("09", "11"):
            shutil.copytree(self.proven.state, learner.state)
            self.request(learner)
            self.order(learner)
            self.issue(learner)
            if script == "11":
                self.open_account(learner)
        return learner

    # What the scripts do, in this process.

    def open_account(self, learner: Learner) -> None:
        """01 and 03, with a key of one's own, so that the account has proven nothing yet."""
        state = State(learner.state)
        state.write("account.key", self.scripts["01"].create_account_key("ec256"))
        ca = acme.connect(config.load(learner.ini), self.account_key(learner))
        url = self.scripts["03"].new_account(ca, {"termsOfServiceAgreed": True}).location
        account = {"account_url": url, "directory": self.lab.directory_url, "contact": [], "status": "valid"}
        state.write_json("account.json", account)

    def request(self, learner: Learner) -> None:
        """02."""
        state = State(learner.state)
        key = x509.new_private_key("ec256")
        state.write("pending/certificate.key", x509.private_key_pem(key))
        state.write("pending/certificate.csr", self.scripts["02"].create_csr(key, list(DOMAINS)))

    def order(self, learner: Learner) -> None:
        """04."""
        answer = self.scripts["04"].new_order(acme.account_client(config.load(learner.ini)), list(DOMAINS))
        saved = {"order_url": answer.location, "order": answer.body}
        State(learner.state).write_json("pending/order.json", saved)

    def issue(self, learner: Learner) -> None:
        """06."""
        state, script = State(learner.state), self.scripts["06"]
        ca = acme.account_client(config.load(learner.ini))
        csr = crypto_x509.load_pem_x509_csr((learner.state / "pending/certificate.csr").read_bytes())
        order = script.issued_order(ca, learner.json("pending/order.json")["order_url"], csr)
        chain = script.download_chain(ca, order["certificate"], None)
        script.put_in_place(state, (learner.state / "pending/certificate.key").read_bytes(), chain)

    def account_key(self, learner: Learner) -> jws.PrivateKey:
        return x509.load_private_key((learner.state / "account.key").read_bytes(), learner.state)

    # Running scripts.

    def start(self, learner: Learner, script: str, *arguments: str, **job: Any) -> int:
        """Begin a script; its process id."""
        return self.server.start(
            argv=[str(SCRIPTS[script]), "--config", str(learner.ini), *ARGUMENTS.get(script, []), *arguments],
            cwd=str(learner.folder),
            environment={**clean_environment(), **learner.environment},
            out=str(learner.folder / "out"),
            err=str(learner.folder / "err"),
            **{"deadline": DEADLINE, **job},
        )

    def finish(self, learner: Learner) -> Run:
        """Wait for the script begun last."""
        code = self.server.wait()
        out, err = learner.folder / "out", learner.folder / "err"
        run = Run(code, out.read_text(), err.read_text(errors="replace"))
        out.unlink()
        err.unlink()
        return run

    def run(self, learner: Learner, script: str, *arguments: str, **job: Any) -> Run:
        self.start(learner, script, *arguments, **job)
        return self.finish(learner)

    def orders(self) -> int:
        """How many orders the CA has taken."""
        return (self.lab.directory / "pebble.log").read_text().count("Added order")


def check_words(run: Run, cause: str = "") -> None:
    """Exit code 0, 1 or 2, no traceback, and for an error what happened and what to do."""
    assert run.code != TOO_LONG, f"it did not end in time:\n{run.err}"
    assert run.code in (0, 1, 2), run.all
    assert "Traceback" not in run.all, run.all
    if run.code:
        error = re.search(r"^error: (.+?)^what to do: (.+)$", run.err, re.MULTILINE | re.DOTALL)
        assert error, f"no error, or no remedy:\n{run.err}"
        assert re.search(cause, error[1]), f"the error does not say {cause!r}:\n{run.err}"


def check_state(state: Path) -> None:
    """Every file whole and private, and the certificate set matches itself."""
    for path in state.rglob("*"):
        if not path.is_file():
            continue
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, f"others can read {path}"
        if path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict), path
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".key":
            load_pem_private_key(path.read_bytes(), None)
        elif path.suffix == ".csr":
            crypto_x509.load_pem_x509_csr(path.read_bytes())
        elif path.suffix == ".pem" and path.name != "chain.pem":
            assert crypto_x509.load_pem_x509_certificates(path.read_bytes())
        elif path.suffix == ".pfx":
            pkcs12.load_pkcs12(path.read_bytes(), PASSWORD.encode())
    if (state / "fullchain.pem").exists():
        chain = crypto_x509.load_pem_x509_certificates((state / "fullchain.pem").read_bytes())
        assert (state / "certificate.pem").read_bytes() == x509.certificate_pem(chain[:1])
        assert (state / "chain.pem").read_bytes() == x509.certificate_pem(chain[1:])
        key = load_pem_private_key((state / "certificate.key").read_bytes(), None)
        assert x509.public_key_der(key) == x509.public_key_der(chain[0])  # type: ignore[arg-type]


def get_done(workshop: Workshop, learner: Learner, script: str) -> None:
    """Run a script, without faults; where it wants another one first, that one, and what leads back to it."""
    going, log = script, []
    for _ in range(8):
        run = workshop.run(learner, going)
        log.append(f"## {going} exited {run.code}\n{run.err}")
        if run.code == 0:
            if going == script:
                return
            going = re.findall(r"^next  (\d\d)", run.err, re.MULTILINE)[0]
        else:
            wanted = re.findall(r"^what to do: .*?(?:run|anew:) (\d\d)", run.err, re.MULTILINE)
            assert wanted, "\n".join(log)
            going = wanted[0]
    raise AssertionError("it goes round in a circle:\n" + "\n".join(log))


def check_goal(workshop: Workshop, learner: Learner, script: str, fault: str = "") -> None:
    """What the script is for is there, seen from outside."""
    lab, state = workshop.lab, learner.state
    if script in ("03", "04", "05", "12", "13"):
        ca = acme.connect(config.load(learner.ini), workshop.account_key(learner))
        try:
            ca.kid = ca.post(ca.url("newAccount"), {"onlyReturnExisting": True}).location
        except acme.Problem as problem:
            assert script == "13" and problem.type in ("unauthorized", "accountDoesNotExist"), problem
        else:
            assert script != "13"
            assert ca.kid == learner.json("account.json")["account_url"]
    if script in ("04", "05"):
        order = ca.post_as_get(learner.json("pending/order.json")["order_url"]).body
        assert order["status"] in (("pending", "ready") if script == "04" else ("ready",))
    if script == "12":
        assert not (state / "pending/account.key").exists()
        assert len(list((state / "history").glob("account-*.key"))) == 1
    if script in ("06", "09"):
        status = lab.pebble.certificate_status(learner.chain()[0].serial_number)["Status"]
        assert status == ("Valid" if script == "06" else "Revoked")
        assert len(learner.chain()) == (1 if fault == "ca-no-chain" else 3)
    if script == "06":
        assert not list((state / "pending").iterdir())
    for number, domain, edge in (
        ("07", CDN_DOMAIN, lab.cdn_edge),
        ("08", API_DOMAIN, lab.apigateway_edge),
    ):
        if script in (number, "11"):
            host, port = edge.split(":")
            assert x509.served_certificate(domain, (host, int(port))) == learner.chain()[0]
    assert not (state / "pending/dns_records.json").exists()


def hold(workshop: Workshop, cell: Cell) -> Run:
    """Try one cell; returns what was said while the fault was on. AssertionError when something does not hold."""
    before = dns_contents(workshop.lab)
    try:
        return try_one(workshop, cell)
    finally:
        # What one cell leaves behind must not fail the next.
        workshop.lab.faults.off()
        for _, record_id, *_ in dns_contents(workshop.lab) - before:
            workshop.lab.cloud.dns.actions["DeleteDomainRecord"]("learner", {"RecordId": record_id})


def try_one(workshop: Workshop, cell: Cell) -> Run:
    learner = workshop.before(cell.script)
    before, orders = dns_contents(workshop.lab), workshop.orders()
    lab = workshop.lab
    lab.faults.struck.clear()
    lab.faults.on(cell.fault)
    slow = (
        cell.name in ("ca-slow", "ca-hang", "ca-drip", "alibaba-slow", "alibaba-hang") or "dns" in cell.name
    )
    try:
        run = workshop.run(learner, cell.script, constants=IMPATIENT if slow else {})
    finally:
        lab.faults.off()
    assert lab.faults.struck[cell.name], f"the fault never struck:\n{run.all}"
    check_words(run, cell.cause)
    assert run.code in cell.codes, run.err
    check_state(learner.state)
    # Some lies are found out only later: an order that is elsewhere, or has nothing to prove any more.
    if run.code or cell.name in ("ca-processing", "ca-other-host"):
        get_done(workshop, learner, cell.script)
        check_state(learner.state)
    check_goal(workshop, learner, cell.script, cell.name)
    assert dns_contents(lab) == before, "records were left, or other people's are gone"
    made = workshop.orders() - orders
    assert made <= cell.orders, f"{made} orders where {cell.orders} would do\n{run.err}"
    shutil.rmtree(learner.folder)
    return run
