"""Starts scripts in processes forked from one that has imported everything: in 0.02 s instead of 0.4 s. POSIX only.

As a program it reads jobs from standard input, one JSON object a line, and answers each with two: the process id, and
the exit status when the process has ended. A job may have a clock that runs ahead: sleeping takes no time then, but
time.monotonic() goes on as if it had, so that every deadline comes when it should, and waits of minutes are tested in
seconds. Who waits longer than the job's `deadline` on that clock is ended with exit code 99.
"""

import importlib
import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = (
    *("common.acme", "common.alibaba", "common.dns", "common.install", "common.renewal", "common.journal"),
    *("common.config", "concurrent.futures.thread", "cryptography.hazmat.primitives.serialization.pkcs12"),
    *("aliyunsdkalidns.request.v20150109.AddDomainRecordRequest", "idna", "dns.resolver", "encodings.idna"),
    *("aliyunsdkcdn.request.v20180510.SetCdnDomainSSLCertificateRequest", "email.utils", "tempfile", "zlib"),
    *("aliyunsdkcloudapi.request.v20160714.DescribeDomainRequest", "rich.text", "requests", "socket"),
)
TOO_LONG = 99


class ForkServer:
    """The other process, seen from the tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Each line is read alone, so that nothing is left where select() does not see it.
            bufsize=0,
        )

    def start(self, **job: Any) -> int:
        """Begin a job; returns its process id. One at a time: wait() before the next."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._pid = self._answer(20)
        return self._pid

    def wait(self, timeout: float = 120) -> int:
        """The exit code of the job begun last, negative for a signal as subprocess has it.

        timeout: in seconds; one that takes longer is killed, and the answer is TOO_LONG
        """
        try:
            return self._answer(timeout)
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            self._answer(20)
            return TOO_LONG

    def stop(self) -> None:
        self._process.communicate()

    def _answer(self, timeout: float) -> int:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        assert line, "the fork server is gone"
        return int(line)


def serve() -> dict[str, Any] | None:
    """Fork for each job; returns in the child, with its job, and in the parent, with None, when all is done."""
    sys.path.insert(0, str(ROOT))
    for module in PRELOADED:
        importlib.import_module(module)
    # Standard input and output become the script's, so the jobs need others.
    jobs, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    for line in jobs:
        job: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(jobs.fileno())
            os.close(answers.fileno())
            return job
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


def become(job: dict[str, Any]) -> None:
    """Make this process the one that the job describes, and run its script."""
    os.setpgid(0, 0)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT),
        (2, job["err"], os.O_WRONLY | os.O_CREAT),
    ):
        handle = os.open(path, mode, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    for name, value in job.get("constants", {}).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, tuple(value) if isinstance(value, list) else value)
    if job.get("deadline"):
        run_ahead(job["deadline"])
    if job.get("no_space_after") is not None:
        fill_the_disk(job["no_space_after"])
    if job.get("without_privileges"):
        drop_privileges()
    sys.argv = job["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_ahead(deadline: float) -> None:
    """Let sleeping take no time, and let the clock tell that it did."""
    sleep, monotonic = time.sleep, time.monotonic
    started, ahead, lock = monotonic(), 0.0, threading.Lock()

    def clock() -> float:
        return monotonic() + ahead

    def nap(seconds: float, /) -> None:
        nonlocal ahead
        awake_at = clock() + seconds
        # A moment for the others: what is waited for must be able to happen.
        sleep(min(seconds, 0.005))
        with lock:
            # Whoever slept beside us may have moved the clock already.
            ahead = max(ahead, awake_at - monotonic())
        if clock() - started > deadline:
            os.write(2, f"still waiting after {deadline} s\n".encode())
            os._exit(TOO_LONG)

    time.sleep, time.monotonic = nap, clock  # type: ignore[assignment]


def fill_the_disk(octets: int) -> None:
    """No file may grow beyond this; Python has SIGXFSZ ignored, so that a write fails with EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, octets))


def drop_privileges() -> None:
    """Let the permissions of files count for root too."""
    if os.geteuid() != 0:
        return
    import ctypes

    # capset(2) with CAP_DAC_OVERRIDE (1), CAP_DAC_READ_SEARCH (2) and CAP_FOWNER (3) taken out; version 3 has
    # two words for each set.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for word in (0, 1):
        sets[word] &= ~0b1110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__" and (received := serve()):
    become(received)
