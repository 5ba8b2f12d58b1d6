"""Makes the lab able to run on a bare machine: .venv, the requirements, and Pebble.

Only the standard library is used here, because nothing else is there yet.
"""

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from lab import LabError

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# What is installed in .venv: requirements file -> hash of its content.
STAMP = VENV / "lab-stamp.json"
# A run of pip that was killed leaves this in the stamp.
UNFINISHED = "unfinished"
FOLDER = "folder"
PRIVATE = ROOT / ".lab"
OS_RELEASE = Path("/etc/os-release")

NOT_POSSIBLE_HERE = 2

HOW_TO_GET_PEBBLE = """\
The lab's CA is Pebble, from Let's Encrypt, and it is not on this machine. Either
    go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest
or take the program for this system from the releases of the letsencrypt/pebble project on GitHub.
Then put it into the PATH, or set the environment variable PEBBLE to where it is."""


def enter_virtual_environment(requirements: Sequence[str], arguments: Sequence[str]) -> None:
    """Return inside .venv with these requirements files installed; elsewhere start the lab again in there.

    requirements: paths relative to the repository root. arguments: those of "python3 lab".
    """
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    python = Path(sys.executable) if inside else _venv_python()
    stamp = _read_stamp()
    if not inside and (UNFINISHED in stamp or not _runs_our_version(python)):
        _create_virtual_environment()
        stamp = {}
    wanted = {name: _digest(ROOT / name) for name in requirements}
    if any(stamp.get(name) != digest for name, digest in wanted.items()):
        _install(python, wanted, stamp)
    if not inside:
        _start_again(python, arguments)


def find_pebble() -> str:
    """The Pebble on this machine: $PEBBLE, the PATH, .lab, or where "go install" puts it."""
    configured = os.environ.get("PEBBLE")
    if configured:
        if not _is_acme_pebble(configured):
            raise LabError(
                f"PEBBLE is set to {configured}, which is no Pebble that can be run", NOT_POSSIBLE_HERE
            )
        return configured
    candidates = [shutil.which("pebble"), _unpacked_pebble(), Path.home() / "go" / "bin" / "pebble"]
    for candidate in candidates:
        if candidate and _is_acme_pebble(str(candidate)):
            return str(candidate)
    raise LabError(HOW_TO_GET_PEBBLE, NOT_POSSIBLE_HERE)


def ensure_pebble() -> str:
    """Find Pebble; on Debian and Ubuntu, where it is a package, get it."""
    try:
        return find_pebble()
    except LabError:
        if os.environ.get("PEBBLE") or not _is_debian():
            raise
    if os.geteuid() == 0:
        _install_pebble_package()
    else:
        _unpack_pebble_package()
    _is_acme_pebble.cache_clear()
    return find_pebble()


def _venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _runs_our_version(python: Path) -> bool:
    """Whether .venv has a Python that starts, of our minor version: packages for another one do not fit."""
    result = run([str(python), "-c", "import sys; print(*sys.version_info[:2])"])
    return result.returncode == 0 and result.stdout.split() == [str(n) for n in sys.version_info[:2]]


def _create_virtual_environment() -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise LabError(
                f"this Python has no {module} module: on Debian and Ubuntu, install the package"
                f" python{version}-venv and try again",
                NOT_POSSIBLE_HERE,
            )
    _say(f"making {VENV.name} with Python {version}")
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    _write_stamp({UNFINISHED: "venv"})
    result = run([sys.executable, "-m", "venv", str(VENV)])
    if result.returncode != 0:
        raise LabError(f"cannot make {VENV}:\n{_last_lines(result.stdout)}")


def _install(python: Path, wanted: Mapping[str, str], stamp: Mapping[str, str]) -> None:
    _say(f"installing {' and '.join(wanted)} into {VENV.name}")
    files = [argument for name in wanted for argument in ("-r", str(ROOT / name))]
    _write_stamp({UNFINISHED: "pip"})
    result = run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *files]
    )
    if result.returncode != 0:
        _write_stamp({name: digest for name, digest in stamp.items() if wanted.get(name, digest) == digest})
        raise LabError(f"pip could not install {' and '.join(wanted)}:\n{_last_lines(result.stdout)}")
    _write_stamp({**stamp, **wanted})


def _start_again(python: Path, arguments: Sequence[str]) -> NoReturn:
    command = [str(python), str(ROOT / "lab"), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)  # noqa: S606
    # On Windows exec returns to the shell at once, so this process waits instead.
    child = subprocess.Popen(command)  # noqa: S603
    while True:
        try:
            sys.exit(child.wait())
        except KeyboardInterrupt:
            # The child got the same Ctrl-C and is cleaning up.
            continue


def _read_stamp() -> dict[str, str]:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stamp, dict):
        return {}
    # A virtual environment that was copied or moved works in part only: its programs name the old place.
    return stamp if stamp.get(FOLDER, str(VENV)) == str(VENV) else {UNFINISHED: "moved"}


def _write_stamp(stamp: Mapping[str, str]) -> None:
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps({**stamp, FOLDER: str(VENV)}, indent=2), encoding="utf-8")
    os.replace(temporary, STAMP)


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise LabError(f"cannot read {file}: {error.strerror}") from error


@functools.cache
def _is_acme_pebble(program: str) -> bool:
    """Whether this program is Let's Encrypt's Pebble; other programs have that name too."""
    return "-dnsserver" in run([program, "-help"]).stdout


def _is_debian() -> bool:
    if not shutil.which("apt-get"):
        return False
    try:
        lines = OS_RELEASE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    families = (values.get("ID", "") + " " + values.get("ID_LIKE", "")).replace('"', "").split()
    return "debian" in families or "ubuntu" in families


def _install_pebble_package() -> None:
    _say("installing the package pebble with apt-get")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "pebble"]
    result = run(install)
    if result.returncode != 0:
        # A fresh machine has no package lists, or old ones.
        run(["apt-get", "update"])
        result = run(install)
    if result.returncode != 0:
        raise LabError(
            f"apt-get could not install pebble:\n{_last_lines(result.stdout)}\n{HOW_TO_GET_PEBBLE}",
            NOT_POSSIBLE_HERE,
        )


def _unpacked_pebble() -> Path:
    return PRIVATE / "pebble" / "usr" / "bin" / "pebble"


def _unpack_pebble_package() -> None:
    """Without root the package cannot be installed, but its one program can be taken out of it."""
    _say(f"downloading the package pebble and unpacking it into {PRIVATE.name}")
    folder = PRIVATE / "pebble"
    for part in (PRIVATE, folder):
        part.mkdir(mode=0o700, exist_ok=True)
    result = run(["apt-get", "download", "pebble"], folder)
    for package in folder.glob("pebble_*.deb"):
        result = run(["dpkg-deb", "-x", str(package), str(folder)])
        package.unlink()
    if result.returncode != 0:
        raise LabError(
            f"apt-get could not download pebble:\n{_last_lines(result.stdout)}\n"
            f'"apt-get install pebble" as root does it too. {HOW_TO_GET_PEBBLE}',
            NOT_POSSIBLE_HERE,
        )


def run(command: Sequence[str], folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program quietly, its output and errors together in stdout; a missing one is exit code 127."""
    try:
        return subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, stdout=f"{command[0]}: {error.strerror}")


def _last_lines(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-15:])


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)
