"""`python3 lab up` as a person runs it: in a process of its own, ended by Ctrl-C, SIGTERM or worse."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import config
from lab import bootstrap

ROOT = Path(__file__).resolve().parent.parent
PORT_OPTIONS = (
    "--ca-port",
    "--management-port",
    "--alibaba-port",
    "--cdn-port",
    "--apigateway-port",
    "--page-port",
)
ANY_PORTS = ["--dns-port", "0", "0", *(word for option in PORT_OPTIONS for word in (option, "0"))]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


def hear_hang_ups() -> None:
    """Whoever runs the tests under nohup has SIGHUP ignored, and children inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Up:
    """A running `lab up` and what it has said."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "lab"), "up", "--directory", str(folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_hang_ups,
        )

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"never said {text!r}:\n" + "\n".join(self.lines))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        output, _ = self.process.communicate(timeout=60)
        self.lines += output.splitlines()
        return self.process.returncode

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    @property
    def ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.said)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str) -> Up:
        started.append(Up(tmp_path, *ANY_PORTS, *options))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.communicate()


def pebbles(folder: Path) -> list[int]:
    """The processes whose command line names this folder's Pebble configuration."""
    wanted = str(folder / ".lab" / "pebble.json").encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            pass
    return found


def open_ports(ports: list[int]) -> list[int]:
    found = []
    for port in ports:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def test_when_it_is_ready_every_part_answers_and_the_settings_are_there(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    up.read_until("Ctrl-C")

    assert "lab ready" in up.lines
    assert len(up.ports) == 8
    assert open_ports(up.ports) == up.ports
    text = (tmp_path / "lab.ini").read_text()
    assert text.startswith("# Made by")
    settings = config.load(tmp_path / "lab.ini")
    assert settings.files.directory == tmp_path / "lab-state"
    for path in (settings.alibaba.credentials_file, settings.iis.password_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = re.search(r"access_key_secret = (\S+)", settings.alibaba.credentials_file.read_text())[1]
    assert secret not in text + up.said
    page = re.search(r"live picture +(http://\S+)", up.said)[1]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(page) as response:
        assert "ACME, call by call" in response.read().decode()


def test_it_says_every_script_to_type_and_one_typed_so_works(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    up.read_until("Ctrl-C")

    commands = [line.strip() for line in up.lines if re.search(r" \d\d_\w+\.py", line)]
    # What revokes and ends is not pasted with the rest.
    later = ("09", "11", "12", "13")
    scripts = sorted(path.name for path in ROOT.glob("[0-9][0-9]_*.py") if path.name[:2] not in later)
    assert [re.search(r"\d\d_\w+\.py", command)[0] for command in commands] == scripts

    for command in commands[:2]:
        result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "lab-state" / "account.key").exists()
    (line,) = (line for line in up.lines if "lab check" in line)
    assert line.strip() == f"python3 lab check --watch --directory {tmp_path}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_child_and_port_and_takes_lab_ini_away(
    start: Callable[..., Up], tmp_path: Path, number: int
) -> None:
    up = start()
    up.read_until("Ctrl-C")
    assert len(pebbles(tmp_path)) == 1

    assert up.end(number) == 0

    assert up.lines[-1] == "lab stopped"
    assert pebbles(tmp_path) == []
    assert open_ports(up.ports) == []
    assert not (tmp_path / "lab.ini").exists()


def test_ctrl_c_in_the_terminal_reaches_the_whole_group_and_ends_it_cleanly(tmp_path: Path) -> None:
    up = subprocess.Popen(
        [sys.executable, str(ROOT / "lab"), "up", "--directory", str(tmp_path), *ANY_PORTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_hang_ups,
    )
    assert up.stdout is not None
    assert any("Ctrl-C" in line for line in up.stdout)

    # A person may press it again and again, and close the window.
    while up.poll() is None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.killpg(up.pid, number)
        time.sleep(0.002)
    output, _ = up.communicate(timeout=60)

    assert output.strip() == "lab stopped"
    assert up.returncode == 0
    assert pebbles(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part in it is Linux's")
def test_a_kill_leaves_no_pebble_and_the_next_lab_starts_all_the_same(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    up.read_until("Ctrl-C")

    up.end(signal.SIGKILL)

    wait_until(lambda: pebbles(tmp_path) == [], "Pebble ends with its parent")
    wait_until(lambda: open_ports(up.ports) == [], "the kernel closes its ports")
    assert (tmp_path / "lab.ini").exists()
    again = start()
    again.read_until("lab ready")


def test_a_second_lab_in_the_same_folder_is_refused_and_the_first_goes_on(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    first = start()
    first.read_until("Ctrl-C")
    settings = (tmp_path / "lab.ini").read_text()

    second = start()

    assert second.wait() == 1
    assert "already up" in second.said
    assert (tmp_path / "lab.ini").read_text() == settings
    assert open_ports(first.ports) == first.ports


def test_settings_that_the_lab_did_not_make_are_not_overwritten(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    (tmp_path / "lab.ini").write_text("[acme]\n")

    up = start()

    assert up.wait() == 2
    assert "lab.ini" in up.said
    assert (tmp_path / "lab.ini").read_text() == "[acme]\n"


def test_an_earlier_labs_state_is_set_aside_and_said_so(start: Callable[..., Up], tmp_path: Path) -> None:
    for name in ("lab-state", "lab-state.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "account.key").write_text(name)

    up = start()
    up.read_until("lab ready")

    assert not (tmp_path / "lab-state").exists()
    assert (tmp_path / "lab-state.old" / "account.key").read_text() == "lab-state"
    assert "lab-state.old" in up.said


def test_a_taken_port_is_named_and_nothing_is_left(start: Callable[..., Up], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        up = start("--ca-port", str(taken))
        assert up.wait() == 1

    assert f"port {taken} (CA) is in use" in up.said
    assert "Traceback" not in up.said
    assert pebbles(tmp_path) == []
    assert not (tmp_path / "lab.ini").exists()


def test_a_ca_that_dies_ends_the_lab_with_an_error(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start()
    up.read_until("Ctrl-C")

    os.kill(pebbles(tmp_path)[0], signal.SIGKILL)

    assert up.wait() == 1
    assert "Pebble ended by itself" in up.said
    assert open_ports(up.ports) == []
    assert not (tmp_path / "lab.ini").exists()


def test_options_reach_the_ca_and_the_name_servers(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start("--strict", "--nonce-reject", "20", "--va-sleep", "2", "--lag", "3", "0")
    up.read_until("Ctrl-C")

    (pid,) = pebbles(tmp_path)
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    servers = re.search(r"name servers +(\S+) +(\S+)", up.said)
    assert b"-strict" in arguments
    assert servers[1].encode() in arguments
    assert b"PEBBLE_WFE_NONCEREJECT=20" in environment
    assert b"PEBBLE_VA_SLEEPTIME=2" in environment


def test_pebble_is_found_before_anything_else_is_touched() -> None:
    assert bootstrap.find_pebble()
