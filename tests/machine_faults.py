"""What may go wrong on the machine that the scripts run on: each function runs one script under one such fault."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from conftest import Learner, Run
from fault_matrix import ARGUMENTS, Cell, Workshop, check_state

from common import x509

# The state files that a script needs: only what it reads can harm it.
READS = {
    "01": ["account.key"],
    "02": ["account.key", "pending/certificate.key"],
    "03": ["account.key", "account.json"],
    "04": ["account.key", "account.json", "pending/certificate.csr", "pending/order.json", "certificate.pem"],
    "05": ["account.key", "account.json", "pending/order.json", "pending/dns_records.json"],
    "06": ["account.json", "pending/order.json", "pending/certificate.key", "pending/certificate.csr"],
    "07": ["certificate.key", "fullchain.pem"],
    "08": ["certificate.key", "fullchain.pem"],
    "09": ["certificate.pem", "account.key", "account.json"],
    "10": ["certificate.key", "fullchain.pem"],
    "11": ["renewal.json", "account.key", "account.json", "fullchain.pem", "revoked.json"],
    "12": ["account.key", "account.json", "pending/account.key"],
    "13": ["account.key", "account.json"],
}
ALL = ("00", *READS)
NEED_AN_ACCOUNT = ("03", "04", "05", "06", "09", "11", "12", "13")


def machine_cells() -> list[Cell]:
    """Every fault of this module with every script that it can strike."""
    whole = [
        *(f"disk-full={octets}" for octets in (0, 300, 1200)),
        *("state-read-only", "keys-open", "two-at-once", "sigint", "sigterm", "sigkill"),
    ]
    cells = [Cell(script, fault) for fault in whole for script in ALL]
    cells += [
        Cell(script, f"state-{how}@{file}")
        for how in DAMAGE
        for script, files in READS.items()
        for file in files
    ]
    return cells + [Cell(script, "state-of-another-ca") for script in NEED_AN_ACCOUNT]


# How a file may be found after a power cut, a full disk, or an editor.
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut-off": lambda content: content[: len(content) // 2],
    "corrupt": lambda content: bytes(
        octet ^ 0x80 if n % 7 == 0 else octet for n, octet in enumerate(content)
    ),
}


def run(workshop: Workshop, learner: Learner, cell: Cell) -> Run:
    """Run the cell's script under its fault, and take the fault away."""
    name, _, about = cell.fault.partition("@")
    if name.startswith("disk-full"):
        return workshop.run(learner, cell.script, no_space_after=int(name.partition("=")[2]))
    if name == "two-at-once":
        return two_at_once(workshop, learner, cell.script)
    if name.startswith("sig"):
        return interrupted(workshop, learner, cell.script, getattr(signal, name.upper()))
    change = {"state-read-only": read_only, "keys-open": keys_open, "state-of-another-ca": of_another_ca}
    with (
        change[name](learner)
        if name in change
        else damaged(workshop, learner, about, DAMAGE[name[len("state-") :]])
    ):
        run = workshop.run(learner, cell.script, without_privileges=name == "state-read-only")
    key = learner.state / "account.key"
    assert name != "keys-open" or cell.script in ("00", "01") or f"chmod 600 {key}" in run.err, run.err
    return run


@contextlib.contextmanager
def read_only(learner: Learner) -> Iterator[None]:
    """Nothing can be written in the state folder."""
    learner.state.mkdir(exist_ok=True)
    folders = [learner.state, *(path for path in learner.state.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o700)


@contextlib.contextmanager
def keys_open(learner: Learner) -> Iterator[None]:
    """The private keys can be read by everybody."""
    keys = [path for path in learner.state.rglob("*.key") if path.is_file()]
    for key in keys:
        key.chmod(0o644)
    yield
    for key in keys:
        if key.exists():
            key.chmod(0o600)


@contextlib.contextmanager
def of_another_ca(learner: Learner) -> Iterator[None]:
    """The state folder belongs to another CA than the settings name."""
    file = learner.state / "account.json"
    if not file.exists():
        account = {"account_url": "https://ca.example/account/1", "status": "valid"}
        file.write_text(json.dumps({**account, "directory": "https://ca.example/directory"}))
        yield
        file.unlink()
        return
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "directory": "https://ca.example/directory"}))
    yield
    file.write_text(content)


@contextlib.contextmanager
def damaged(
    workshop: Workshop, learner: Learner, name: str, damage: Callable[[bytes], bytes]
) -> Iterator[None]:
    """One file is not as a script wrote it; it is restored afterwards, unless the script has replaced it."""
    file = learner.state / name
    # A file that the script would find after other steps only.
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_bytes(stand_in(workshop, name))
        file.chmod(0o600)
    whole = file.read_bytes()
    broken = damage(whole)
    file.write_bytes(broken)
    yield
    if file.exists() and file.read_bytes() == broken:
        file.write_bytes(whole)


def stand_in(workshop: Workshop, name: str) -> bytes:
    """What an earlier run may have left under this name."""
    if name.endswith(".key"):
        return x509.private_key_pem(x509.new_private_key("ec256"))
    if name == "certificate.pem":
        return (workshop.issued.state / name).read_bytes()
    directory_url = workshop.lab.directory_url
    content: dict[str, Any] = {
        "account.json": {"account_url": "https://ca.example/account/1", "directory": directory_url},
        "pending/order.json": {"order_url": f"{directory_url[:-3]}my-order/none", "order": {}},
        "pending/dns_records.json": {
            "entries": [{"zone": "example.test", "rr": "_acme-challenge", "value": "of a run that died"}]
        },
        "renewal.json": {"serial": "", "window": [], "failures": 0, "installed": {}},
        "revoked.json": {"serial": "00", "reason": "superseded"},
    }[name]
    return json.dumps(content).encode()


def two_at_once(workshop: Workshop, learner: Learner, script: str) -> Run:
    """The script is started while it runs already; returns what the later one said."""
    first = learner.start(script, *ARGUMENTS.get(script, []))
    wait_for(lambda: (learner.state / ".lock").exists() or first.poll() is not None)
    run = workshop.run(learner, script)
    out, err = first.communicate(timeout=60)
    assert first.returncode in (0, 1, 2), err
    assert "Traceback" not in out + err, err
    return run


def interrupted(workshop: Workshop, learner: Learner, script: str, number: int) -> Run:
    """The script gets a signal at a random moment of its life."""
    lives = {"00": 0.4, "05": 0.5, "07": 1.0, "08": 0.4, "11": 1.2}.get(script, 0.1)
    pid = workshop.start(learner, script)
    # Before that it has not read its settings, and knows of no signal.
    wait_for(workshop.says_something)
    time.sleep(random.Random(f"{script} {number}").uniform(0, lives))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    run = workshop.finish(learner)
    # Python lets go of its handlers when it ends, so that a late signal kills as it would any program.
    if run.code != -number:
        return run
    check_state(learner.state)
    return Run(1, run.out, f"error: killed\nwhat to do: {run.err}")


def wait_for(happened: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)
