"""11_renew.py over many settings files: does the last one cost what the first did? And the emulator."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from lab import LabError, bootstrap
from lab.bench.clients import HERE, our_settings, scripts
from lab.bench.issuance import CONDITIONS, ZONE, Bench, Site, execute, last_words, plain_environment

FILES = 100
GROUP = 10
CALLS, CONNECTIONS = 2000, 4
EVERY = 0.05  # seconds between two looks at the process


class Sample(NamedTuple):
    """A look at the running process: how many certificates it has got, its memory in octets, its open files."""

    time: float
    certificates: int
    memory: int
    files: int


def run() -> int:
    """Print both tables."""
    with Bench(CONDITIONS[0]) as bench:
        folder = Path(tempfile.mkdtemp(prefix="acme-bench-"))
        try:
            print(renewals(bench, folder), flush=True)
            print(emulator(bench, folder), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def renewals(bench: Bench, folder: Path) -> str:
    """One run of 11_renew.py for FILES certificates, in groups of GROUP; and one run that finds nothing due."""
    environment = plain_environment(folder) | bench.lab.environment()
    files = settings_files(bench, folder, environment)
    bench.lab.ca.exchanges.clear()
    samples = watched(bench, folder, environment, files)
    lines = ["| certificates | seconds each | memory, MB | open files |", "|---|--:|--:|--:|"]
    for start in range(0, FILES, GROUP):
        group = [sample for sample in samples if start <= sample.certificates < start + GROUP]
        before = next(sample.time for sample in samples if sample.certificates >= start)
        after = next((s.time for s in samples if s.certificates >= start + GROUP), samples[-1].time)
        memory = statistics.median(sample.memory for sample in group) / 1e6
        most = max(sample.files for sample in group)
        lines.append(
            f"| {start + 1} to {start + GROUP} | {(after - before) / GROUP:.2f} | {memory:.1f} | {most} |"
        )
    began = time.monotonic()
    watched(bench, folder, environment, files)
    idle = time.monotonic() - began
    lines += ["", f"A run that finds none of the {FILES} due takes {idle:.1f} s."]
    return "\n".join(lines) + "\n"


def settings_files(bench: Bench, folder: Path, environment: dict[str, str]) -> Path:
    """A folder with a settings file for each certificate, each with a state folder that has the one account."""
    first = Site(bench.lab, bench.hooks, folder, [ZONE], 0.0)
    our_settings(first)
    for command in scripts(first, "01", "03"):
        if execute(command, environment, folder / "bench.log", 60):
            raise LabError(f"cannot prepare: {last_words(folder / 'bench.log')}")
    files = folder / "sites"
    files.mkdir()
    for number in range(FILES):
        shutil.copytree(folder / "state", files / f"state-{number:03}")
        bench.lab.write_settings(
            files / f"{number:03}.ini",
            [f"n{number:03}.{ZONE}"],
            state=f"state-{number:03}",
            certificate={"key_type": "ec256"},
            cdn={"domains": None},
            apigateway={"domains": None},
        )
    return files


def watched(bench: Bench, folder: Path, environment: dict[str, str], files: Path) -> list[Sample]:
    """Run 11_renew.py over a folder, and look at it meanwhile."""
    script = next(bootstrap.ROOT.glob("11_*.py"))
    samples = []
    log = folder / "renew.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(script), str(files)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            done = sum(exchange.resource == "certificate" for exchange in list(bench.lab.ca.exchanges))
            try:
                samples.append(Sample(time.monotonic(), done, memory(process.pid), open_files(process.pid)))
            except OSError:
                break
            time.sleep(EVERY)
    if process.wait():
        raise LabError(f"11_renew.py failed: {last_words(log)}")
    return samples


def memory(pid: int) -> int:
    """The resident set of a process, in octets (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def emulator(bench: Bench, folder: Path) -> str:
    """Calls of AddDomainRecord that the emulated cloud answers in a second of one core."""
    key = bench.lab.access_key
    task = {
        "ca_bundle": str(bench.lab.ca_bundle),
        "alibaba": bench.lab.alibaba_endpoint,
        "access_key_id": key.access_key_id,
        "access_key_secret": key.access_key_secret,
        "zone": ZONE,
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    (folder / "task.json").chmod(0o600)
    command = [sys.executable, str(HERE / "load.py"), str(folder / "task.json"), str(CALLS), str(CONNECTIONS)]
    cpu, began = time.process_time(), time.monotonic()
    # In a process of its own, so that its computing is not counted.
    if execute(command, plain_environment(folder), folder / "bench.log", 300):
        raise LabError(f"the load failed: {last_words(folder / 'bench.log')}")
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    return (
        f"The emulated cloud answers {CALLS / cpu:.0f} calls of AddDomainRecord in a second of one core "
        f"({CALLS} calls over {CONNECTIONS} connections: {cpu:.1f} s of computing, {wall:.1f} s in all).\n"
    )
