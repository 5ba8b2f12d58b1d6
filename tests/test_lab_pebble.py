"""Pebble as the lab's subprocess: its knobs, its errors, and that it never outlives the lab."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import LabError, bootstrap, lab, pki
from lab.pebble import Pebble, PebbleOptions, PortInUseError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Pebble]:
    """Makes a Pebble on free ports; its start is the test's."""

    def make(binary: str | Path | None = None, **options: object) -> Pebble:
        port, management_port = lab._free_ports(2)
        port = options.pop("port", port)
        management_port = options.pop("management_port", management_port)
        return Pebble(
            binary or bootstrap.find_pebble(),
            tmp_path,
            pki.write_server_files(tmp_path),
            "127.0.0.1:5353",
            port,
            management_port,
            PebbleOptions(**options),
        )

    return make


def fake_program(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "fake-pebble"
    program.write_text(f"#!{sys.executable}\nimport os, sys\n{script}\n")
    program.chmod(0o755)
    return program


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def test_a_started_pebble_answers_over_verified_tls_and_a_stopped_one_is_gone(
    make: Callable[..., Pebble],
) -> None:
    with make() as pebble:
        pebble.wait_until_ready()
        pid = pebble.pid
        assert pid is not None
        assert "newOrder" in json.loads(pebble.get(pebble.directory_url))
        assert pebble.issuer_roots().count("BEGIN CERTIFICATE") == 1

    assert not is_alive(pid)
    assert pebble.pid is None


def test_a_program_that_is_not_there_is_an_error_that_names_it(
    make: Callable[..., Pebble], tmp_path: Path
) -> None:
    missing = tmp_path / "no-pebble"
    with pytest.raises(LabError, match="no-pebble"), make(missing) as pebble:
        pebble.wait_until_ready()


def test_a_pebble_that_dies_is_an_error_with_its_last_words(
    make: Callable[..., Pebble], tmp_path: Path
) -> None:
    program = fake_program(tmp_path, "print('first'); sys.exit('Failed to read: cannot find the moon')")

    with pytest.raises(LabError, match="cannot find the moon"), make(program) as pebble:
        pebble.wait_until_ready()


def test_a_pebble_that_never_answers_is_an_error_after_a_deadline(
    make: Callable[..., Pebble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.pebble.START_TIMEOUT", 0.2)
    program = fake_program(tmp_path, "import time; time.sleep(60)")

    with pytest.raises(LabError, match="does not answer"), make(program) as pebble:
        pebble.wait_until_ready()

    assert pebble.pid is None


def test_a_pebble_that_does_not_end_when_asked_is_killed(
    make: Callable[..., Pebble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.pebble.STOP_TIMEOUT", 0.1)
    program = fake_program(
        tmp_path,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(60)",
    )
    with make(program) as pebble:
        wait_until(lambda: "deaf" in pebble.log.read_text(), "the program starts")

    assert pebble.pid is None


@pytest.mark.parametrize("which", ["port", "management_port"])
def test_a_taken_port_is_named(make: Callable[..., Pebble], which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {taken} ") as error, make(**{which: taken}) as pebble:
            pebble.wait_until_ready()

    assert error.value.port == taken


def test_knobs_reach_the_real_pebble(make: Callable[..., Pebble]) -> None:
    keys = {"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}
    with make(chain_length=3, alternate_roots=2, eab_required=True, eab_keys=keys) as pebble:
        pebble.wait_until_ready()

        assert pebble.issuer_roots().count("BEGIN CERTIFICATE") == 3
        assert json.loads(pebble.get(pebble.directory_url))["meta"]["externalAccountRequired"] is True


def test_every_knob_is_passed_on(make: Callable[..., Pebble], tmp_path: Path) -> None:
    program = fake_program(
        tmp_path,
        "import json\n"
        "config = json.load(open(sys.argv[2]))['pebble']\n"
        "print(json.dumps([sys.argv[1:], config, dict(os.environ)]))",
    )
    with make(
        program,
        strict=True,
        nonce_reject=20,
        va_sleep=3,
        authz_reuse=100,
        chain_length=2,
        alternate_roots=1,
        validity_period=3600,
        blocked_domains=("bad.test",),
        extra_config={"retryAfter": {"order": 7}},
    ) as pebble:
        wait_until(lambda: pebble.pid is None, "the program ends")
    arguments, config, environment = json.loads(pebble.log.read_text())

    assert "-strict" in arguments
    assert arguments[arguments.index("-dnsserver") + 1] == "127.0.0.1:5353"
    assert config["certificateValidityPeriod"] == 3600
    assert config["domainBlocklist"] == ["bad.test"]
    assert config["retryAfter"] == {"order": 7}
    assert environment["PEBBLE_WFE_NONCEREJECT"] == "20"
    assert environment["PEBBLE_VA_NOSLEEP"] == "0"
    assert environment["PEBBLE_VA_SLEEPTIME"] == "3"
    assert environment["PEBBLE_AUTHZREUSE"] == "100"
    assert environment["PEBBLE_CHAIN_LENGTH"] == "2"
    assert environment["PEBBLE_ALTERNATE_ROOTS"] == "1"
    assert environment["PEBBLE_VA_ALWAYS_VALID"] == "0"


def test_validation_can_never_be_skipped_by_the_environment(
    make: Callable[..., Pebble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEBBLE_VA_ALWAYS_VALID", "1")
    program = fake_program(tmp_path, "print(os.environ['PEBBLE_VA_ALWAYS_VALID'])")

    with make(program) as pebble:
        wait_until(lambda: pebble.pid is None, "the program ends")

    assert pebble.log.read_text().strip() == "0"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_keys_are_private_and_the_tls_roots_key_is_written_nowhere(
    make: Callable[..., Pebble], tmp_path: Path
) -> None:
    with make(eab_keys={"kid-1": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"}) as pebble:
        pebble.wait_until_ready()

    private = [path for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert [path.name for path in private] == ["lab-server.key"]
    for path in (*private, tmp_path / "pebble.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "c2VjcmV0" not in repr(pebble.options)


def test_pebble_goes_on_when_the_thread_that_started_it_ends(make: Callable[..., Pebble]) -> None:
    pebble = make()
    starter = threading.Thread(target=pebble.start)
    starter.start()
    starter.join()
    try:
        pebble.wait_until_ready()
        assert pebble.pid is not None
    finally:
        pebble.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part in it is Linux's")
def test_pebble_ends_with_a_parent_that_is_killed() -> None:
    program = (
        "import sys, time; from lab import Lab\n"
        "with Lab() as lab: print(lab.pebble.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)

    wait_until(lambda: not is_alive(pid), "Pebble ends with its parent")


def test_pebble_ends_with_a_parent_that_forgets_to_stop_it() -> None:
    program = "from lab import Lab; lab = Lab(); lab.start(); print(lab.pebble.pid, lab.directory)"

    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    pid, directory = result.stdout.split()
    wait_until(lambda: not is_alive(int(pid)), "Pebble ends with its parent")
    assert not Path(directory).exists()
