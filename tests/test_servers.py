"""docs/servers.md, docs/scheduling.md: nginx for real, systemd's own check, and files that are what they say."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SCRIPTS, Learner, clean_environment
from debian import program
from visitor import Visitor

from common import x509
from lab import Lab

DOCS = ROOT / "docs"
SCRIPT = DOCS / "nginx" / "reload-if-changed.sh"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Nginx:
    """Debian's nginx as an ordinary process, with the site of the guide."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.port, self.stamp = folder, free_port(), folder / "stamp.pem"
        folder.mkdir()
        site = (DOCS / "nginx" / "site.conf").read_text()
        site = site.replace("listen 443", f"listen 127.0.0.1:{self.port}").replace(
            "example.com", "www.example.test"
        )
        site = site.replace("/var/lib/acme/state", str(state)).replace("/var/www/html", str(folder))
        (folder / "nginx.conf").write_text(
            f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log notice;\nworker_processes 1;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"events {{}}\nhttp {{\naccess_log off;\nclient_body_temp_path {folder}/body;\n"
            + "".join(
                f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
            )
            + f"{site}\n}}\n"
        )
        self.command = [program("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf")]

    def start(self) -> None:
        subprocess.run(self.command, check=True, capture_output=True)
        end = time.monotonic() + 20
        while True:
            try:
                self.serial()
                return
            except OSError:
                assert time.monotonic() < end, (self.folder / "error.log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        subprocess.run([*self.command, "-s", "stop"], capture_output=True)

    def serial(self) -> str:
        return x509.serial_hex(x509.served_certificate("www.example.test", ("127.0.0.1", self.port)))

    def reloads(self) -> int:
        return (self.folder / "error.log").read_text().count("(SIGHUP) received")

    def reload_if_changed(self, state: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [str(SCRIPT), str(state), str(self.stamp)]
        environment = {**clean_environment(), "NGINX_COMMAND": shlex.join(self.command), **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def nginx(holder: Learner, tmp_path: Path) -> Iterator[Nginx]:
    server = Nginx(tmp_path / "nginx", holder.state)
    server.start()
    yield server
    server.stop()


def wait_until_served(nginx: Nginx, serial: str) -> None:
    end = time.monotonic() + 20
    while nginx.serial() != serial:
        assert time.monotonic() < end, f"{serial} is not served"
        time.sleep(0.05)


def test_nginx_serves_each_new_certificate_after_one_reload_and_no_handshake_fails(
    nginx: Nginx, holder: Learner, lab: Lab
):
    holder.settings(cdn={"domains": None}, apigateway={"domains": None})
    assert nginx.serial() == holder.serial()
    assert "reloaded" in nginx.reload_if_changed(holder.state).stdout  # the first call cannot know
    assert nginx.reload_if_changed(holder.state).stdout == ""
    assert nginx.reloads() == 1
    with Visitor(lab.issuer_roots(), [(f"127.0.0.1:{nginx.port}", "www.example.test")]) as visitor:
        for number in range(2, 5):
            holder.run("11", "--force")
            run = nginx.reload_if_changed(holder.state)
            assert (run.returncode, run.stdout) == (0, "nginx was reloaded for a new certificate\n"), (
                run.stderr
            )
            wait_until_served(nginx, holder.serial())
            nginx.reload_if_changed(holder.state)
            assert nginx.reloads() == number
    assert visitor.failures == []
    assert visitor.handshakes > 50


def test_a_reload_that_was_missed_is_made_up_for_and_a_broken_configuration_is_not_loaded(
    nginx: Nginx, holder: Learner
):
    holder.settings(cdn={"domains": None}, apigateway={"domains": None})
    nginx.reload_if_changed(holder.state)
    holder.run("11", "--force")
    good = (nginx.folder / "nginx.conf").read_text()
    (nginx.folder / "nginx.conf").write_text(good + "nonsense;")
    assert nginx.reload_if_changed(holder.state).returncode != 0
    assert nginx.reloads() == 1
    (nginx.folder / "nginx.conf").write_text(good)
    assert "reloaded" in nginx.reload_if_changed(holder.state).stdout
    wait_until_served(nginx, holder.serial())


def test_before_there_is_a_certificate_nothing_is_reloaded(tmp_path: Path):
    run = subprocess.run(
        [str(SCRIPT), str(tmp_path), str(tmp_path / "stamp")],
        env={**clean_environment(), "NGINX_COMMAND": "false"},
        capture_output=True,
    )
    assert run.returncode == 0


def verify(folder: Path) -> "subprocess.CompletedProcess[str]":
    """systemd's own check of the two files, which stand in a folder with the programs that they name."""
    checker = program("systemd-analyze", "systemd")
    units = [str(folder / name) for name in ("acme-renew.service", "acme-renew.timer")]
    environment = {**clean_environment(), "SYSTEMD_UNIT_PATH": f"{folder}:"}
    return subprocess.run([checker, "verify", *units], env=environment, capture_output=True, text=True)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The systemd files, with /opt/acme where this repository is: the check wants the programs to exist."""
    for name in ("acme-renew.service", "acme-renew.timer"):
        text = (DOCS / "systemd" / name).read_text()
        text = text.replace("/opt/acme/.venv/bin/python", "/usr/bin/env python3").replace(
            "/opt/acme", str(ROOT)
        )
        (tmp_path / name).write_text(text)
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_service_and_the_timer(units: Path):
    run = verify(units)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("acme-renew.service", "Type=oneshot", "Type=onshot"),
        ("acme-renew.service", "ExecStart=", "ExecStart=/nowhere/"),
        ("acme-renew.timer", "OnCalendar=*-*-*", "OnCalendar=soon"),
    ],
)
def test_systemds_check_does_find_what_is_wrong(units: Path, name: str, good: str, bad: str):
    text = (units / name).read_text()
    assert good in text
    (units / name).write_text(text.replace(good, bad))
    run = verify(units)
    assert run.returncode != 0 or run.stderr


def test_the_service_runs_a_script_that_exists_with_options_that_it_has():
    service = (DOCS / "systemd" / "acme-renew.service").read_text()
    command = re.search(r"^ExecStart=(.+)$", service, re.MULTILINE)
    assert command
    check_renew_command(command[1])


def check_renew_command(command: str) -> None:
    words = shlex.split(command)
    script = next(word for word in words if word.endswith("11_renew.py"))
    assert Path(script).name == SCRIPTS["11"].name
    options = words[words.index(script) + 1 :]
    text = SCRIPTS["11"].read_text() + (ROOT / "common" / "config.py").read_text()
    assert all(f'"{option}"' in text for option in options if option.startswith("--"))


def test_the_cron_line_has_five_fields_a_minute_and_our_commands():
    block = re.search(r"```cron\n(.+)\n```", (DOCS / "scheduling.md").read_text())
    assert block
    minute, hours, *rest = block[1].split(" ", 5)
    assert 0 < int(minute) < 60 and hours == "3,15" and rest[:3] == ["*", "*", "*"]
    check_renew_command(rest[3].partition("&& ")[2].partition(";")[0])
    assert SCRIPT.relative_to(ROOT).as_posix() in rest[3]


def test_the_cron_job_keeps_its_state_runs_alone_and_is_not_root():
    job = yaml.safe_load((DOCS / "kubernetes" / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check_renew_command(shlex.join(container["command"]))
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert "persistentVolumeClaim" in mounts["/var/lib/acme"] and "configMap" in mounts["/etc/acme"]
    assert "secretRef" in container["envFrom"][0]
    assert "env" not in container, "no key stands in the file"


def test_the_scripts_of_the_pages_are_executable_and_plain_sh():
    assert os.access(SCRIPT, os.X_OK)
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell
    assert subprocess.run([shell, "-n", str(SCRIPT)]).returncode == 0


def test_the_settings_of_every_ca_are_settings_that_exist():
    page = (DOCS / "other-cas.md").read_text()
    example = (ROOT / "acme.example.ini").read_text()
    for name in (
        "directory",
        "agree_to_terms_of_service",
        "eab_key_id",
        "eab_hmac_key_file",
        "ca_bundle",
        "preferred_chain",
    ):
        assert f"`{name}" in page.replace("[acme] ", "") and f"{name} = " in example
