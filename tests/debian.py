"""Programs that tests need from Debian's packages; a missing one is installed, or it is a failure."""

import os
import shutil
import subprocess

import pytest


def program(name: str, package: str) -> str:
    """The path of a program; as root on Debian its package is installed when it is missing."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if not shutil.which(name, path=path) and shutil.which("apt-get") and os.geteuid() == 0:
        install = [
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=120",
            "install",
            "-y",
            "--no-install-recommends",
            package,
        ]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(install, env=environment, capture_output=True).returncode:
            subprocess.run(["apt-get", "update"], capture_output=True)
            subprocess.run(install, env=environment, capture_output=True)
    found = shutil.which(name, path=path)
    if not found:
        pytest.fail(f"{name} is missing: install the package {package}")
    return found
