"""The other clients: Debian's packages, and those from PyPI in a virtual environments of the bench's own."""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from lab import bootstrap

HERE = Path(__file__).resolve().parent
# Two, as they cannot live together.
CERTBOT, SEWER = (bootstrap.PRIVATE / f"bench-{name}" / "bin" / name for name in ("certbot", "sewer"))
# Of Debian and Ubuntu; each has a program of the same name.
PACKAGES = ("uacme", "dehydrated", "certbot", "lego", "acme-tiny")
HOOKED = ("uacme", "dehydrated", "certbot")
CURL = "curl"  # what the hook calls the bench with


def install(programs: Iterable[str]) -> dict[str, str]:
    """Install those that are missing and can be; returns why the others are missing, in words: program -> reason."""
    wanted = set(programs)
    missing = {}
    wanted |= {CURL} if wanted & set(HOOKED) else set()
    absent = [package for package in (*PACKAGES, CURL) if package in wanted and not shutil.which(package)]
    if absent:
        reason = _install_packages(absent)
        missing = {package: reason for package in absent if not shutil.which(package)}
        missing |= dict.fromkeys(HOOKED, f"no curl: {reason}") if CURL in missing else {}
    for program in (CERTBOT, SEWER):
        if str(program) in wanted and (why := _install_from_pypi(program)):
            missing[str(program)] = why
    return missing


def versions() -> dict[str, str]:
    """What is installed: name -> version, in which nobody's word but the package manager's is taken."""
    found = {"Python": sys.version.split()[0]}
    if shutil.which("dpkg-query"):
        for package in (*PACKAGES, CURL, "pebble"):
            answer = bootstrap.run(["dpkg-query", "--show", "--showformat", "${Version}", package])
            if answer.returncode == 0 and answer.stdout:
                found[package] = answer.stdout
    for program in (CERTBOT, SEWER):
        frozen = bootstrap.run([str(program.with_name("python")), "-m", "pip", "freeze"])
        for name, version in re.findall(r"^(certbot\S*|sewer)==(\S+)$", frozen.stdout, re.MULTILINE):
            found[f"{name} (PyPI)"] = version
    return found


def machine() -> str:
    """The machine in a line."""
    uname = os.uname()
    return f"{os.cpu_count()} cores, {uname.machine}, {uname.sysname} {uname.release.partition('-')[0]}"


def _install_packages(packages: list[str]) -> str:
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return "not installed; as root on Debian and Ubuntu it would be"
    print(f"lab: installing {' '.join(packages)} with apt-get", file=sys.stderr, flush=True)
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    answer = bootstrap.run(command)
    if answer.returncode != 0:
        # A fresh machine has no package lists, or old ones.
        bootstrap.run(["apt-get", "update"])
        answer = bootstrap.run(command)
    return f"apt-get could not install it: {_last_line(answer.stdout)}"


def _install_from_pypi(program: Path) -> str | None:
    """Make the virtual environment of a program, unless it is there already; in words why it could not be made."""
    venv, requirements = program.parent.parent, HERE / f"peers-{program.name}.txt"
    stamp = venv / requirements.name
    if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
        return None
    print(
        f"lab: installing {program.name} into {venv.relative_to(bootstrap.ROOT)}", file=sys.stderr, flush=True
    )
    venv.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    pip = [str(program.with_name("python")), "-m", "pip", "install", "--quiet", "--no-input"]
    for command in ([sys.executable, "-m", "venv", str(venv)], [*pip, "-r", str(requirements)]):
        answer = bootstrap.run(command)
        if answer.returncode != 0:
            return f"pip could not install it: {_last_line(answer.stdout)}"
    shutil.copyfile(requirements, stamp)
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no words"])[-1]
