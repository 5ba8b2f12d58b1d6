"""From order to certificate: every client, one after another, in the same lab, under the same condition."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from lab import LabError, bootstrap
from lab.alibaba.cloud import Call
from lab.bench.clients import HERE, REFUSED, Client, Site
from lab.bench.hooks import HookServer
from lab.lab import Lab

ZONE = "bench.test"
ONCE_SECONDS = 120.0
AT_ONCE = 10  # as many requests as anybody here has in flight

Interval = tuple[float, float]


@dataclass(frozen=True)
class Condition:
    """How far away everything is, in seconds: a round trip to the CA, one to Alibaba Cloud, the name servers' lags."""

    name: str
    title: str
    ca: float
    alibaba: float
    lags: tuple[float, float]


CONDITIONS = (
    Condition("loopback", "loopback as it is", 0.0, 0.0, (0.0, 0.0)),
    Condition(
        "distance",
        "CA 40 ms, Alibaba Cloud 60 ms, name servers 0.2 s and 0.5 s behind",
        0.04,
        0.06,
        (0.2, 0.5),
    ),
    Condition(
        "slow-dns", "CA 40 ms, Alibaba Cloud 60 ms, name servers 5 s and 20 s behind", 0.04, 0.06, (5.0, 20.0)
    ),
)


def floor(condition: Condition, names: int) -> float:
    """The longest chain of round trips that depend on each other, and DNS; nobody's computing, CA's or client's."""
    turns = math.ceil(names / AT_ONCE)
    # Handshakes of TCP and TLS, directory, nonce, newOrder; authorizations, challenges; the order when it is ready,
    # finalize, the order when it is valid, the certificate. The way to Alibaba Cloud is open by then.
    at_ca = 2 + 1 + 1 + 1 + 2 * turns + 1 + 1 + 1 + 1
    return at_ca * condition.ca + turns * condition.alibaba + max(condition.lags)


class Parts(NamedTuple):
    """Where the seconds of a run went.

    Each moment counts once, for the first of these that it fits: a connection or request at the CA is under way; one at
    Alibaba Cloud; a record is made and the last name server has not got it; a program has started and has not yet asked
    anybody anything; nothing of this, which is a pause, or the client's own work.
    """

    ca: float
    alibaba: float
    dns: float
    start: float
    waiting: float


class Run(NamedTuple):
    """One run of one client. Times are in seconds, peak is in octets.

    lab: CPU seconds that the lab used meanwhile; late: from the last name server's having all records until the CA was
    told to look, negative when that was before; left: TXT records that stayed in the zone
    """

    wall: float
    cpu: float
    peak: int
    lab: float
    acme: int
    alibaba: int
    dns: int
    parts: Parts
    late: float
    left: int


class Failed(Exception):  # noqa: N818
    """A client that did not bring a certificate; the reason in words."""


def domain_names(count: int, wildcards: bool) -> list[str]:
    """So many names in one zone; two are the zone itself and its wildcard."""
    if count <= 2:
        return [ZONE, f"*.{ZONE}" if wildcards else f"www.{ZONE}"][:count]
    return [f"n{number:03}.{ZONE}" for number in range(1, count + 1)]


class Bench:
    """A lab under one condition, in which clients are run."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.slowest = max(condition.lags)
        self.hooks = HookServer(ZONE, condition.alibaba, self.slowest)
        self.lab = Lab(
            lags=condition.lags,
            round_trips=(condition.ca, condition.alibaba),
            blocked_domains=(REFUSED,),
            # Where the CA looks for http-01.
            extra_config={"httpPort": self.hooks.server_address[1]},
        )
        self.hooks.dns = self.lab.cloud.dns

    def __enter__(self) -> "Bench":
        self.lab.start()
        self.hooks.__enter__()
        self.lab.cloud.dns.add_zone(ZONE)
        self.lab.cloud.dns.add_record(ZONE, "@", "A", "127.0.0.1")
        self.lab.cloud.dns.add_record(ZONE, "*", "A", "127.0.0.1")
        self.lab.cloud.on_call = self._note
        return self

    def __exit__(self, *exception: object) -> None:
        self.hooks.__exit__()
        self.lab.stop()

    def run(self, client: Client, count: int, timeout: float) -> Run:
        """Run a client, with an account of its own, for so many names; Failed when there is no certificate."""
        names = domain_names(count, client.wildcards)
        folder = Path(tempfile.mkdtemp(prefix="acme-bench-"))
        try:
            return self._run(client, Site(self.lab, self.hooks, folder, names, self.slowest), timeout)
        finally:
            self._take_away_what_is_left()
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, client: Client, site: Site, timeout: float) -> Run:
        job = client.make(site)
        environment = plain_environment(site.folder) | job.environment
        log = site.folder / "bench.log"
        for command in job.once:
            code = execute(command, environment, log, ONCE_SECONDS)
            if code and not job.once_may_fail:
                raise Failed(f"cannot prepare: {last_words(log)}")
        self._forget(len(site.names))
        result = site.folder / "bench.json"
        measured = [word for command in job.commands for word in (*command, ",")][:-1]
        # Bare, so that it is as small as Python can be.
        measure = [sys.executable, "-I", "-S", str(HERE / "measure.py"), str(result)]
        cpu = time.process_time()
        code = execute([*job.within, *measure, *measured], environment, log, timeout)
        cpu = time.process_time() - cpu
        if code is None:
            raise Failed(f"not done after {timeout:.0f} s")
        if code or not result.exists():
            raise Failed(last_words(log))
        runs = json.loads(result.read_text(encoding="utf-8"))
        check(job.certificate, site.names, self.lab, log, runs)
        return self._figures(runs, cpu)

    def _note(self, call: Call) -> None:
        if (call.action, call.status) == ("AddDomainRecord", 200):
            self.hooks.added.append(time.monotonic())

    def _forget(self, names: int) -> None:
        """Begin to count at nothing."""
        self.lab.ca.exchanges.clear()
        self.lab.ca.traffic.clear()
        self.lab.cloud.calls.clear()
        self.lab.gateway.traffic.clear()
        for server in self.lab.dns_servers:
            server.queries.clear()
        self.hooks.added.clear()
        self.hooks.traffic.clear()
        self.hooks.expected = names

    def _figures(self, runs: list[dict[str, float]], lab_cpu: float) -> Run:
        programs = [(run["began"], run["ended"]) for run in runs]
        ca = list(self.lab.ca.traffic)
        alibaba = [*self.lab.gateway.traffic, *self.hooks.traffic]
        lagging = [(moment, moment + self.slowest) for moment in self.hooks.added]
        return Run(
            wall=programs[-1][1] - programs[0][0],
            cpu=sum(run["cpu"] for run in runs),
            peak=int(max(run["peak"] for run in runs)),
            lab=lab_cpu,
            acme=len(self.lab.ca.exchanges),
            # A hook's change stands for the calls that a real one would make.
            alibaba=len(self.lab.cloud.calls) or len(self.hooks.traffic),
            dns=sum(len(server.queries) for server in self.lab.dns_servers),
            parts=split(programs, ca, alibaba, lagging),
            late=self._late(),
            left=self._take_away_what_is_left(),
        )

    def _late(self) -> float:
        looks = [exchange.time for exchange in self.lab.ca.exchanges if exchange.resource == "challenge"]
        if not looks or not self.hooks.added:
            return 0.0
        # Two clocks: the exchanges are told by the one that is set, the records by the one that only runs.
        return min(looks) - time.time() + time.monotonic() - max(self.hooks.added) - self.slowest

    def _take_away_what_is_left(self) -> int:
        """How many TXT records the client has left in the zone; and away with them."""
        records = [record for record in self.lab.cloud.dns.records(ZONE) if record.type == "TXT"]
        for record in records:
            self.lab.cloud.dns.remove_record(record.record_id)
        return len(records)


def split(
    programs: list[Interval], ca: list[Interval], alibaba: list[Interval], lagging: list[Interval]
) -> Parts:
    """Part the time of the programs, from the first one's start to the last one's end."""
    asking = sorted(began for began, _ in [*ca, *alibaba])
    starting = [
        (began, next((moment for moment in asking if moment >= began), ended)) for began, ended in programs
    ]
    whole = [(programs[0][0], programs[-1][1])]
    taken: list[Interval] = []
    seconds = []
    for kind in (ca, alibaba, lagging, starting, whole):
        before = covered(taken)
        taken = overlap([*taken, *kind], *whole[0])
        seconds.append(covered(taken) - before)
    return Parts(*seconds)


def overlap(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """What of the intervals lies between start and end, joined where they overlap."""
    joined: list[Interval] = []
    for began, ended in sorted((max(began, start), min(ended, end)) for began, ended in intervals):
        if ended <= began:
            continue
        if joined and began <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(ended, joined[-1][1]))
        else:
            joined.append((began, ended))
    return joined


def covered(intervals: Iterable[Interval]) -> float:
    return sum(ended - began for began, ended in intervals)


def median(runs: list[Run]) -> Run:
    """The run that is in the middle by its time, so that its parts are of one piece; figures beside are medians."""
    middle = sorted(runs, key=lambda run: run.wall)[(len(runs) - 1) // 2]
    return middle._replace(
        wall=statistics.median(run.wall for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        peak=int(statistics.median(run.peak for run in runs)),
        lab=statistics.median(run.lab for run in runs),
        late=statistics.median(run.late for run in runs),
    )


def check(certificate: Path, names: list[str], lab: Lab, log: Path, runs: list[dict[str, float]]) -> None:
    """Failed unless the file is a certificate of the lab's CA for these names."""
    codes = [int(run["code"]) for run in runs]
    if any(codes) or not certificate.exists():
        raise Failed(f"exit code {codes[-1]}: {last_words(log)}")
    leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(held.get_values_for_type(x509.DNSName)) != set(names):
        raise Failed("the certificate is for other names")
    if lab.pebble.certificate_status(leaf.serial_number).get("Status") != "Valid":
        raise Failed("the CA does not know the certificate")


def execute(command: list[str], environment: dict[str, str], log: Path, timeout: float) -> int | None:
    """Run a program with its output in a file; its exit code, None when the time was over and it was ended."""
    with open(log, "ab") as file:
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise LabError(f"cannot run {command[0]}: {error.strerror}") from error
        try:
            return process.wait(timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def plain_environment(home: Path) -> dict[str, str]:
    """The environment without a proxy, without credentials, and with a home folder of the run's own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(home)}


def last_words(log: Path) -> str:
    """The last line that a program wrote: why it failed, if it says so at all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].replace(f"{bootstrap.ROOT}/", "")[:300] if lines else "no words"
