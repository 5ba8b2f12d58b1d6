"""The matrix script × fault: what is tried, and what must hold whatever the fault is."""

import fcntl
import json
import os
import re
import select
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import PASSWORD, SCRIPTS, Learner, Run, clean_environment, dns_contents, load_script
from cryptography import x509 as crypto_x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from fork_server import TOO_LONG, ForkServer

from common import acme, config, jws, show, x509
from common.state import State
from lab import Lab, faults
from lab.faults import ca

DOMAINS = ("example.test", "*.example.test", "shop.workshop.com.test")
CDN_DOMAIN, API_DOMAIN = "www.example.test", "api.example.test"
ARGUMENTS = {"11": ["--force"], "13": ["--yes"]}
# Seconds on the script's own clock. The longest waits of a script are five minutes, and some have two of them.
DEADLINE = 900.0
# Where a fault makes somebody wait for an answer that does not come, nobody should wait half a minute for that.
IMPATIENT = {
    "common.acme.TIMEOUT": [2, 1.3],
    "common.acme.ANSWER_TIMEOUT": 1.5,
    "common.alibaba.TIMEOUT": [2, 1.3],
    "common.dns.QUERY_TIMEOUT": 0.2,
}


@dataclass(frozen=True)
class Cell:
    """One script with one fault.

    fault: as of lab.faults, or a name of machine_faults and what it is about
    """

    script: str
    fault: str

    @property
    def name(self) -> str:
        """The fault's name, without how often and where."""
        return re.split(r"[=@*%]", self.fault)[0]

    @property
    def orders(self) -> int:
        """How many orders the CA may get, from here to the end of the job."""
        needed = {"04": 1, "11": 1}.get(self.script, 0)
        return needed + bool(re.match(ORDER_LOST, str(self)))

    @property
    def cause(self) -> str:
        """What an error must say, as a regular expression: for a damaged file, which one it is."""
        about = next((words for name, words in CAUSES.items() if self.name.startswith(name)), None)
        return self.fault.rpartition("/")[2].rpartition("@")[2] if about is None else about

    def __str__(self) -> str:
        return f"{self.script} {self.fault}"


# What a script must get along with. (Old Pebbles do not ask again by TCP, and they ask the first name server.)
HARMLESS = (
    r".. (ca-random-entry|ca-unknown-challenges|ca-no-chain|dns-truncated@(2|CNAME)|dns-stale|keys-open)"
)
# Where the fault costs an order: the CA has made it and nobody has heard of it, or it cannot be used any more.
ORDER_LOST = (
    r"04 ca-(slow|drip|reset-within|reset-after|huge|no-location|other-host)@newOrder"
    r"|06 ca-(other-key|other-names|expired)@|05 dns-(truncated|cname-loop)@(1|TXT|CNAME)"
    # The records are taken back, and perhaps the CA is only then looking.
    r"|05 (ca-.*@challenge|sig)"
    # Nowhere to keep the order's URL.
    r"|04 (disk-full|state-read-only|sig)"
    # Whatever broke a renewal off: --force orders anew.
    r"|11 (.*%|sig|two-at-once)"
)
# What an error must say, whichever script says it: the beginning of a fault's name -> a regular expression.
CAUSES = {
    "ca-slow": "timed out",
    "ca-hang": "timed out",
    "ca-drip": "timed out|is not whole after",
    "ca-reset": "closed connection|[Rr]eset|IncompleteRead|[Aa]borted|EOF",
    "ca-429": "429 ",
    "ca-500": "500 ",
    "ca-503": "503 ",
    "ca-html": "is not a JSON object|holds no PEM certificate",
    "ca-empty": "is not a JSON object|holds no PEM certificate",
    "ca-truncated": "is not a JSON object|in the middle of a certificate",
    "ca-not-utf8": "is not a JSON object",
    "ca-deep": "is not a JSON object|holds no PEM certificate",
    "ca-content-type": "is not a JSON object",
    "ca-huge": "longer than 1000000 octets",
    "ca-no-location": "has no Location",
    "ca-no-nonce": "gave no Replay-Nonce",
    "ca-old-nonce": "badNonce",
    "ca-redirect": "redirected to http",
    "ca-pending": "is pending",
    # Said to 05 by chance, it ends the wait for the proofs too early, and 06 finds that out.
    "ca-processing": "waited 300 s for the CA to issue|the order is pending",
    "ca-invalid-order": "the order is invalid",
    "ca-other-host": "localhost:9/.*refused",
    "ca-no-dns01": "offers no dns-01 challenge that can be used, but dns-persist-01, from-the-future-02",
    "ca-token": "offers no dns-01 challenge that can be used",
    "ca-no-certificate": "no usable certificate",
    "ca-other-key": "is for another key",
    "ca-other-names": "lacks .*; it has other.test",
    "ca-expired": "expired on",
    "ca-chain-disorder": "not in order: certificate 1 ",
    "ca-no-pem": "cannot be read",
    # The CA asks the same name servers, so that it may be the one that complains.
    "dns-": "name server|port 53|the order is invalid|waited 300 s for the CA to validate|CNAME records lead nowhere",
    "alibaba-slow": "timed out",
    "alibaba-hang": "timed out",
    "alibaba-reset": "closed connection|[Rr]eset",
    "alibaba-throttled": "Throttling.User on ",
    "alibaba-busy": "ServiceBusy on |at work on the last change",
    "alibaba-503": "ServiceUnavailable on ",
    "alibaba-500": "InternalError on ",
    "alibaba-clock": "InvalidTimeStamp.Expired on .* clock is 60 minutes behind",
    "alibaba-forbidden": "Forbidden.RAM on ",
    "alibaba-unknown-key": "InvalidAccessKeyId.NotFound on ",
    "alibaba-signature": "SignatureDoesNotMatch on ",
    "alibaba-odd-signature": "SignatureDoesNotMatch on ",
    "alibaba-ttl": "QuotaExceeded.TTL on ",
    "alibaba-duplicate": "not on every authoritative name server",
    "alibaba-locked": "DomainRecordLocked on ",
    "alibaba-ignored": "waited 300 s for ",
    "alibaba-not-utf8": "no usable error code",
    "alibaba-number": "no JSON object",
    "alibaba-html": "no JSON object",
    "alibaba-empty": "no JSON object",
    "alibaba-truncated": "no JSON object",
    "alibaba-deep": "no JSON object",
    # API Gateway says of a domain without a certificate that it has none by saying nothing.
    "alibaba-strange": "answer has no |waited 300 s for API Gateway to show it",
    "alibaba-huge": "longer than 10000000 octets",
    "edge-": "waited 300 s for ",
    "disk-full": "cannot write|File too large",
    "state-read-only": "Permission denied",
    "two-at-once": "another script is at work",
    "sig": "interrupted|killed",
    "state-of-another-ca": "belongs to https://ca.example",
}


# Which requests each script makes, by the parts of the lab. (That 11 makes those of the others is told by chance.)
MEETS = {
    "CA": {
        "00": ["directory"],
        "03": ["directory", "newNonce", "newAccount", "account"],
        "04": ["directory", "newNonce", "newOrder", "order"],
        "05": ["order", "authorization", "challenge"],
        "06": ["order", "finalize", "certificate"],
        "09": ["revokeCert"],
        "11": ["directory"],
        "12": ["newNonce", "keyChange"],
        "13": ["account"],
    },
    "DNS": {"00": ["1", "2"], "05": ["1", "2", "TXT", "CNAME"]},
    "Alibaba Cloud": {
        "00": ["GetCallerIdentity", "DescribeDomains", "DescribeDomainRecords"],
        "05": ["DescribeDomains", "AddDomainRecord", "DeleteDomainRecord"],
        "07": ["DescribeDomainCertificateInfo", "SetCdnDomainSSLCertificate"],
        "08": ["DescribeDomain", "SetDomainCertificate"],
    },
    "edges": {"07": ["cdn"], "08": ["apigateway"]},
}
EVERYWHERE = ((), ca.SIGNED)


def lab_cells() -> list[Cell]:
    """Every fault of the lab at every request that it can strike, for ever and once; and all through a renewal."""
    cells = []
    for fault in faults.all_faults():
        for script, requests in MEETS[fault.part].items():
            struck = (
                requests if fault.at in EVERYWHERE else [where for where in requests if where in fault.at]
            )
            cells += [
                Cell(script, f"{fault.name}@{where}{times}") for where in struck for times in ("", "*1")
            ]
        cells.append(Cell("11", f"{fault.name}%30"))
    return cells


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

    def before(self, script: str, resuming: bool = False) -> Learner:
        """A learner for whom this script is next; resuming: 04 finds an earlier run's order."""
        learner = self.learner()
        state = State(learner.state)
        if script in ("02", "03"):
            state.write("account.key", self.scripts["01"].create_account_key("ec256"))
        elif script == "04":
            shutil.copytree(self.proven.state, learner.state)
            state.remove("pending/order.json")
            if resuming:
                self.order(learner)
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
        self.pipes = [learner.folder / "out", learner.folder / "err"]
        self.outputs = []
        for pipe in self.pipes:
            # A pipe, for no file can be written to on a full disk; wide enough for all that a script says.
            os.mkfifo(pipe)
            self.outputs.append(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
            fcntl.fcntl(self.outputs[-1], fcntl.F_SETPIPE_SZ, 1024 * 1024)
        return self.server.start(
            argv=[str(SCRIPTS[script]), "--config", str(learner.ini), *ARGUMENTS.get(script, []), *arguments],
            cwd=str(learner.folder),
            environment={**clean_environment(), **learner.environment},
            out=str(self.pipes[0]),
            err=str(self.pipes[1]),
            **{"deadline": DEADLINE, **job},
        )

    def finish(self, learner: Learner) -> Run:
        """Wait for the script begun last."""
        code = self.server.wait()
        texts = []
        for pipe, handle in zip(self.pipes, self.outputs, strict=True):
            with open(handle, "rb", buffering=0) as file:
                texts.append((file.read() or b"").decode(errors="replace"))
            pipe.unlink()
        return Run(code, *texts)

    def says_something(self) -> bool:
        """Whether the script begun last has begun to speak, or has ended."""
        return bool(select.select([self.outputs[1]], [], [], 0.002)[0])

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
        # 00 tells what it finds on standard output.
        assert re.search(cause, error[1] + run.out), f"the error does not say {cause!r}:\n{run.err}"


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
        elif script != "11":  # which is run again by its timer, and takes every step itself
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
        changes = len(list((state / "history").glob("account-*.key")))
        # It may have been done when another run, or the signal, came.
        assert changes == 1 or (changes == 2 and re.match("two|sig", fault))
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


def table(tried: Counter[str], held: Counter[str]) -> str:
    """What came of the matrix: a row for each fault, with the number of cells tried and held."""
    rows = [(fault, tried[fault], held[fault]) for fault in sorted(tried)]
    rows.append(("all", tried.total(), held.total()))
    lines = [
        f"{name:<24} {cells:>5}  {good:>5}{'' if good == cells else '  <--'}" for name, cells, good in rows
    ]
    return "\n".join([f"{'fault':<24} tried   held", *lines])


Under = Callable[[Workshop, Learner, Cell], Run]


def hold(workshop: Workshop, cell: Cell, under: Under) -> Run:
    """Try one cell; returns what was said while the fault was on. AssertionError when something does not hold.

    under: runs the cell's script under its fault
    """
    before = dns_contents(workshop.lab)
    try:
        return try_one(workshop, cell, under)
    finally:
        # What one cell leaves behind must not fail the next.
        workshop.lab.faults.off()
        for _, record_id, *_ in dns_contents(workshop.lab) - before:
            workshop.lab.cloud.dns.actions["DeleteDomainRecord"]("learner", {"RecordId": record_id})


def try_one(workshop: Workshop, cell: Cell, under: Under) -> Run:
    learner = workshop.before(cell.script, resuming="@order" in cell.fault)
    before, orders = dns_contents(workshop.lab), workshop.orders()
    run = under(workshop, learner, cell)
    check_words(run, cell.cause)
    assert run.code == 0 or not re.match(HARMLESS, str(cell)), run.err
    check_state(learner.state)
    # Some lies are found out only later: an order that is elsewhere, or has nothing to prove any more.
    if run.code or cell.name in ("ca-processing", "ca-other-host"):
        get_done(workshop, learner, cell.script)
        check_state(learner.state)
    check_goal(workshop, learner, cell.script, cell.name)
    assert dns_contents(workshop.lab) == before, "records were left, or other people's are gone"
    made = workshop.orders() - orders
    assert made <= cell.orders, f"{made} orders where {cell.orders} would do\n{run.err}"
    shutil.rmtree(learner.folder)
    return run


def under_lab_fault(workshop: Workshop, learner: Learner, cell: Cell) -> Run:
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
    # By chance it may strike nothing.
    assert lab.faults.struck[cell.name] or "%" in cell.fault, f"the fault never struck:\n{run.all}"
    return run
