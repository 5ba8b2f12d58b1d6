"""`python3 lab up`: a lab that stays, with a lab.ini that the scripts find by themselves."""

import argparse
import configparser
import contextlib
import io
import os
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from lab import LabError, bootstrap, pki
from lab.lab import Lab, Ports
from lab.page.server import PageServer
from lab.page.watch import Watch

HEADER = '# Made by "python3 lab up", which takes it away when it ends.\n'
PROFILE = "lab"


def run(options: argparse.Namespace) -> int:
    """Start the lab, say what to type, and stay until Ctrl-C, SIGTERM or the terminal's end."""
    folder = Path(options.directory or bootstrap.ROOT).absolute()
    private = folder / ".lab"
    end_on_signals()
    try:
        with _only_one(private), _settings_file(folder / "lab.ini") as settings:
            _set_old_state_aside(folder / "lab-state")
            with _lab(options, private) as lab:
                _write_settings(lab, settings, private)
                with Watch(lab, settings) as watch, PageServer(watch, options.page_port) as page:
                    _say_ready(lab, settings, page.url)
                    lab.pebble.wait_until_ended()
    except KeyboardInterrupt:
        # While Python ends, a signal would have its default effect again.
        _handle_signals(signal.SIG_IGN)
        # After a hang-up there is no terminal to say it to.
        with contextlib.suppress(OSError):
            print("lab stopped", flush=True)
        return 0


def _lab(options: argparse.Namespace, private: Path) -> Lab:
    first, second = options.dns_port
    return Lab(
        private,
        lags=tuple(options.lag),
        ports=Ports(
            ca=options.ca_port,
            management=options.management_port,
            dns=(first, second),
            alibaba=options.alibaba_port,
            cdn=options.cdn_port,
            apigateway=options.apigateway_port,
        ),
        faults=options.fault,
        fault_seed=options.fault_seed,
        strict=options.strict,
        nonce_reject=options.nonce_reject,
        va_sleep=options.va_sleep,
        authz_reuse=options.authz_reuse,
        chain_length=options.chain_length,
        alternate_roots=options.alternate_roots,
    )


def end_on_signals() -> None:
    """Make SIGTERM and a hang-up unwind as Ctrl-C does; what comes after the first disturbs no clean-up."""

    def end(number: int, frame: object) -> NoReturn:
        # Not SIG_IGN: of a signal that has arrived already Python would complain.
        _handle_signals(lambda number, frame: None)
        raise KeyboardInterrupt

    _handle_signals(end)


def _handle_signals(handler: Callable[[int, Any], Any] | signal.Handlers) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        # Under nohup a hang-up is ignored, and stays so.
        if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, handler)


@contextlib.contextmanager
def _only_one(private: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it whatever ends this process."""
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(private / "up.lock", "a", encoding="utf-8") as file:
        try:
            _lock(file)
        except OSError:
            raise LabError(
                f"a lab is already up in {private.parent}; Ctrl-C in its terminal ends it"
            ) from None
        yield


def _lock(file: IO[str]) -> None:
    """Lock a file without waiting; OSError when another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _settings_file(settings: Path) -> Iterator[Path]:
    """Refuse a lab.ini of somebody else's; take ours away at the end."""
    if settings.exists() and not settings.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        raise LabError(f"{settings} was not made by the lab: move it away first", exit_code=2)
    try:
        yield settings
    finally:
        settings.unlink(missing_ok=True)


def _set_old_state_aside(state: Path) -> None:
    """The CA forgets everything when it stops, so what an earlier lab issued is of no use with this one."""
    if not state.exists():
        return
    old = state.with_name(f"{state.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    state.rename(old)
    print(f"{state.name} is from an earlier lab, whose CA is gone: it is {old.name} now", flush=True)


def _write_settings(lab: Lab, settings: Path, private: Path) -> None:
    """Write lab.ini and, private, what it points at: the access key and a password for the PFX file."""
    key = lab.access_key
    credentials = configparser.ConfigParser(interpolation=None)
    credentials[PROFILE] = {
        "type": "access_key",
        "access_key_id": key.access_key_id,
        "access_key_secret": key.access_key_secret,
    }
    text = io.StringIO()
    credentials.write(text)
    pki.write_private(private / "credentials.ini", text.getvalue().encode())
    pki.write_private(private / "pfx-password.txt", secrets.token_urlsafe(12).encode())
    ca_bundle = f"{private.name}/{lab.ca_bundle.name}"
    lab.write_settings(
        settings,
        state="lab-state",
        header=HEADER,
        acme={"ca_bundle": ca_bundle},
        alibaba={
            "profile": PROFILE,
            "credentials_file": f"{private.name}/credentials.ini",
            "ca_bundle": ca_bundle,
        },
        iis={"windows": "2022", "password_file": f"{private.name}/pfx-password.txt"},
    )


def _say_ready(lab: Lab, settings: Path, page: str) -> None:
    """Say where every part listens, and what to type in the second terminal."""
    print("lab ready")
    print(f"  CA                {lab.directory_url}")
    print(f"  CA management     {lab.management_url}")
    print(f"  name servers      {'  '.join(lab.nameservers)}")
    print(f"  Alibaba Cloud     {lab.alibaba_endpoint}")
    print(f"  CDN edge          {lab.cdn_edge}")
    print(f"  API Gateway edge  {lab.apigateway_edge}")
    print(f"  settings          {settings}")
    print(f"  live picture      {page}")
    for fault in lab.faults.active():
        print(f"  fault             {fault}")
    print("\nIn a second terminal:")
    if Path.cwd() != bootstrap.ROOT:
        print(f"  cd {_quoted(str(bootstrap.ROOT))}")
    python = Path(sys.executable)
    if python.is_relative_to(bootstrap.ROOT):
        python = python.relative_to(bootstrap.ROOT)
    # The scripts find lab.ini beside them by themselves, unless there is an acme.ini, which comes first.
    beside = settings.parent == bootstrap.ROOT
    found = beside and not (bootstrap.ROOT / "acme.ini").exists()
    config = "" if found else f" --config {_quoted(settings.name if beside else str(settings))}"
    scripts = sorted(script.name for script in bootstrap.ROOT.glob("[0-9][0-9]_*.py"))
    for script in scripts:
        if script[:2] not in ("09", "11", "12", "13"):
            print(f"  {_quoted(str(python))} {script}{config}")
    print("  then 09 and 11 to 13, which revoke, renew and end: see docs/labs")
    directory = "" if beside else f" --directory {_quoted(str(settings.parent))}"
    print(f"\nIn a third, what you have done, seen from outside:\n  python3 lab check --watch{directory}")
    print("\nCtrl-C here ends the lab.", flush=True)


def _quoted(text: str) -> str:
    """A path as the system's shell wants it when there is a space in it."""
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)
