"""The first "python3 lab" on a bare machine: .venv, requirements, Pebble; and its words where it cannot."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import lab.__main__ as command_line
from lab import LabError, bootstrap

REQUIREMENTS = ["requirements.txt", "tests/requirements.txt"]
OUR_VERSION = f"{sys.version_info[0]} {sys.version_info[1]}"


class StartedAgainError(Exception):
    """Instead of a new process inside .venv."""


class Machine:
    """The programs of a machine: what was run, and what each run answers."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        # What the Python in .venv says of itself; None where it does not start.
        self.venv_version: str | None = None
        self.answers: dict[str, Callable[[list[str]], tuple[int, str]]] = {}

    def run(self, command: Sequence[str], folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
        command = [str(part) for part in command]
        self.commands.append(command)
        code, output = self._answer(command)
        return subprocess.CompletedProcess(command, code, stdout=output)

    def _answer(self, command: list[str]) -> tuple[int, str]:
        for word, answer in self.answers.items():
            if word in command:
                return answer(command)
        if "-c" in command:
            return (127, "not found") if self.venv_version is None else (0, self.venv_version)
        if "venv" in command:
            self.venv_version = OUR_VERSION
        return 0, ""

    def ran(self, word: str) -> list[list[str]]:
        return [command for command in self.commands if word in command]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A fresh clone on a machine where nothing is installed yet."""
    machine = Machine()
    (tmp_path / "tests").mkdir()
    for name in REQUIREMENTS:
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / ".venv" / "lab-stamp.json")
    monkeypatch.setattr(bootstrap, "PRIVATE", tmp_path / ".lab")
    monkeypatch.setattr(bootstrap, "run", machine.run)

    def start_again(python: Path, arguments: Sequence[str]) -> None:
        assert python.parent.parent == tmp_path / ".venv"
        raise StartedAgainError(list(arguments))

    monkeypatch.setattr(bootstrap, "_start_again", start_again)
    return machine


def enter(*names: str) -> None:
    with pytest.raises(StartedAgainError):
        bootstrap.enter_virtual_environment(names or ["requirements.txt"], ["demo"])


def pip_files(machine: Machine) -> list[str]:
    """The requirements files of the last run of pip."""
    command = machine.ran("pip")[-1]
    return [Path(part).name for flag, part in zip(command, command[1:], strict=False) if flag == "-r"]


def test_the_first_call_makes_the_environment_installs_and_goes_on_inside_with_the_same_arguments(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StartedAgainError) as started:
        bootstrap.enter_virtual_environment(REQUIREMENTS, ["test", "-k", "x"])

    assert started.value.args[0] == ["test", "-k", "x"]
    assert machine.ran("venv")[0][:3] == [sys.executable, "-m", "venv"]
    assert pip_files(machine) == ["requirements.txt", "requirements.txt"]
    said = capsys.readouterr().err
    assert "making .venv" in said
    assert "requirements.txt" in said


def test_the_second_call_installs_nothing_and_says_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    enter()
    machine.commands.clear()
    capsys.readouterr()

    enter()

    assert not machine.ran("pip")
    assert not machine.ran("venv")
    assert capsys.readouterr().err == ""


def test_requirements_are_installed_again_when_their_content_changes(machine: Machine) -> None:
    enter()
    (bootstrap.ROOT / "requirements.txt").write_text("requests==1\n")
    machine.commands.clear()

    enter()

    assert len(machine.ran("pip")) == 1
    assert not machine.ran("venv")


def test_the_tests_requirements_are_installed_when_tests_are_first_run_and_kept(machine: Machine) -> None:
    enter("requirements.txt")
    enter(*REQUIREMENTS)
    assert len(machine.ran("pip")) == 2

    enter("requirements.txt")
    enter(*REQUIREMENTS)
    assert len(machine.ran("pip")) == 2


@pytest.mark.parametrize("version", ["3 1", None], ids=["another Python", "broken"])
def test_an_environment_of_another_python_or_a_broken_one_is_made_anew(
    machine: Machine, version: str | None
) -> None:
    enter()
    (bootstrap.VENV / "leftover").touch()
    machine.commands.clear()
    machine.venv_version = version

    enter()

    assert machine.ran("venv")
    assert machine.ran("pip")
    assert not (bootstrap.VENV / "leftover").exists()


def test_an_environment_that_a_person_made_is_kept_and_completed(machine: Machine) -> None:
    bootstrap.VENV.mkdir()
    (bootstrap.VENV / "theirs").touch()
    machine.venv_version = OUR_VERSION

    enter()

    assert (bootstrap.VENV / "theirs").exists()
    assert machine.ran("pip")


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_first_call_that_is_interrupted_is_started_afresh_by_the_next(machine: Machine, step: str) -> None:
    def interrupt(command: list[str]) -> tuple[int, str]:
        raise KeyboardInterrupt

    machine.answers[step] = interrupt
    with pytest.raises(KeyboardInterrupt):
        bootstrap.enter_virtual_environment(REQUIREMENTS, ["demo"])
    (bootstrap.VENV / "half-installed").touch()
    machine.answers.clear()
    machine.venv_version = OUR_VERSION
    machine.commands.clear()

    enter(*REQUIREMENTS)

    assert machine.ran("venv")
    assert machine.ran("pip")
    assert not (bootstrap.VENV / "half-installed").exists()


def test_an_interrupted_update_is_not_trusted_either(machine: Machine) -> None:
    def interrupt(command: list[str]) -> tuple[int, str]:
        raise KeyboardInterrupt

    enter()
    requirements = bootstrap.ROOT / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text("requests==1\n")
    machine.answers["pip"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        bootstrap.enter_virtual_environment(["requirements.txt"], ["demo"])
    # Even with the old requirements back, what pip left half done is not what the stamp said.
    requirements.write_text(before)
    machine.answers.clear()
    machine.commands.clear()

    enter()

    assert machine.ran("venv")
    assert machine.ran("pip")


def test_an_update_of_one_file_leaves_the_other_installed(machine: Machine) -> None:
    enter(*REQUIREMENTS)
    (bootstrap.ROOT / "requirements.txt").write_text("requests==1\n")
    enter("requirements.txt")
    machine.commands.clear()

    enter(*REQUIREMENTS)

    assert not machine.ran("pip")


def test_a_failure_of_pip_is_shown_and_tried_again_and_spoils_nothing_else(machine: Machine) -> None:
    enter("requirements.txt")
    machine.answers["pip"] = lambda command: (1, "Collecting x\nERROR: no route to host")

    with pytest.raises(LabError, match="no route to host") as error:
        bootstrap.enter_virtual_environment(REQUIREMENTS, ["test"])
    assert error.value.exit_code == 1

    machine.answers.clear()
    machine.commands.clear()
    enter("requirements.txt")
    assert not machine.ran("pip")
    enter(*REQUIREMENTS)
    assert machine.ran("pip")


def test_inside_the_environment_nothing_is_started_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.VENV.mkdir()
    monkeypatch.setattr(sys, "prefix", str(bootstrap.VENV))

    bootstrap.enter_virtual_environment(REQUIREMENTS, ["test"])
    bootstrap.enter_virtual_environment(REQUIREMENTS, ["test"])

    assert len(machine.ran("pip")) == 1
    assert machine.ran("pip")[0][0] == sys.executable


def test_an_environment_that_was_copied_from_elsewhere_is_made_anew(machine: Machine) -> None:
    enter()
    stamp = json.loads(bootstrap.STAMP.read_text())
    bootstrap.STAMP.write_text(json.dumps({**stamp, "folder": "/elsewhere/.venv"}))
    machine.commands.clear()

    enter()

    assert machine.ran("venv") and machine.ran("pip")


def test_a_damaged_stamp_is_no_stamp(machine: Machine) -> None:
    enter()
    bootstrap.STAMP.write_text("{half")
    machine.commands.clear()

    enter()

    assert machine.ran("pip")


def test_a_python_without_ensurepip_names_debians_package(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name)
    )

    with pytest.raises(LabError, match=rf"python{sys.version_info[0]}\.{sys.version_info[1]}-venv") as error:
        bootstrap.enter_virtual_environment(REQUIREMENTS, ["demo"])

    assert error.value.exit_code == 2
    assert not bootstrap.VENV.exists()


def test_a_clone_that_is_not_whole_is_said_so(machine: Machine) -> None:
    (bootstrap.ROOT / "requirements.txt").unlink()

    with pytest.raises(LabError, match=r"requirements\.txt"):
        bootstrap.enter_virtual_environment(REQUIREMENTS, ["demo"])


def test_an_old_python_is_told_which_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18, "final", 0))

    assert command_line.main() == 2
    assert "Python 3.10 or newer" in capsys.readouterr().err


def test_the_file_that_says_so_can_be_read_by_an_old_python() -> None:
    source = Path(command_line.__file__).read_text(encoding="utf-8")

    ast.parse(source, feature_version=(3, 6))


def test_what_runs_before_the_environment_exists_needs_the_standard_library_only() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "import lab, lab.bootstrap, lab.__main__\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'lab'}\n"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(Path(bootstrap.__file__).parent.parent)],
        capture_output=True,
        text=True,
    )

    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["up", "--help"]])
def test_help_is_given_without_preparing_anything(arguments: list[str], tmp_path: Path) -> None:
    # A copy, so that a .venv that were made would be seen.
    copy = tmp_path / "lab"
    copy.mkdir()
    for name in ("__init__.py", "__main__.py", "bootstrap.py"):
        (copy / name).write_bytes((Path(bootstrap.__file__).parent / name).read_bytes())

    result = subprocess.run([sys.executable, str(copy), *arguments], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert "usage: python3 lab" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]


@pytest.mark.parametrize("arguments", [[], ["dance"], ["up", "--ca-port", "80"], ["up", "--lag", "1"]])
def test_wrong_usage_is_exit_code_2_without_preparing_anything(
    machine: Machine, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.run(arguments)

    assert ended.value.code == 2
    assert "usage: python3 lab" in capsys.readouterr().err
    assert machine.commands == []


# Pebble


PEBBLE_HELP = "Usage of pebble:\n  -config string\n  -dnsserver string\n"


@pytest.fixture
def no_pebble(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Pebble; returns a folder that is its PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    bootstrap._is_acme_pebble.cache_clear()
    monkeypatch.delenv("PEBBLE", raising=False)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(bootstrap, "OS_RELEASE", tmp_path / "os-release")
    machine.answers["-help"] = lambda command: (0, PEBBLE_HELP) if Path(command[0]).exists() else (127, "")
    yield path
    bootstrap._is_acme_pebble.cache_clear()


def add_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def be_debian(path: Path) -> None:
    bootstrap.OS_RELEASE.write_text('ID=linuxmint\nID_LIKE="ubuntu debian"\n')
    add_program(path / "apt-get")


def test_pebble_is_found_in_the_path_then_where_go_installs_it(no_pebble: Path, tmp_path: Path) -> None:
    installed_by_go = add_program(tmp_path / "home" / "go" / "bin" / "pebble")
    assert bootstrap.ensure_pebble() == str(installed_by_go)

    in_path = add_program(no_pebble / "pebble")
    assert bootstrap.ensure_pebble() == str(in_path)


def test_the_variable_comes_first_and_a_wrong_one_is_an_error(
    no_pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program(no_pebble / "pebble")
    mine = add_program(tmp_path / "my-pebble")
    monkeypatch.setenv("PEBBLE", str(mine))
    assert bootstrap.ensure_pebble() == str(mine)

    monkeypatch.setenv("PEBBLE", str(tmp_path / "missing"))
    with pytest.raises(LabError, match="missing") as error:
        bootstrap.ensure_pebble()
    assert error.value.exit_code == 2


def test_another_program_of_that_name_is_not_taken_for_it(no_pebble: Path, machine: Machine) -> None:
    add_program(no_pebble / "pebble")
    machine.answers["-help"] = lambda command: (0, "Pebble lets you control services and files")

    with pytest.raises(LabError, match="go install"):
        bootstrap.ensure_pebble()


def test_where_there_is_no_package_it_is_said_how_to_get_pebble(no_pebble: Path, machine: Machine) -> None:
    with pytest.raises(LabError) as error:
        bootstrap.ensure_pebble()

    assert error.value.exit_code == 2
    assert "go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest" in str(error.value)
    assert "PEBBLE" in str(error.value)
    assert not machine.ran("apt-get")


@pytest.mark.skipif(os.name == "nt", reason="Debian is not Windows")
@pytest.mark.parametrize("lists_are_old", [False, True])
def test_root_on_debian_gets_the_package_with_new_lists_if_need_be(
    no_pebble: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, lists_are_old: bool
) -> None:
    be_debian(no_pebble)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def install(command: list[str]) -> tuple[int, str]:
        if lists_are_old and not machine.ran("update"):
            return 100, "E: Unable to locate package pebble"
        add_program(no_pebble / "pebble")
        return 0, ""

    machine.answers["install"] = install

    assert bootstrap.ensure_pebble() == str(no_pebble / "pebble")
    assert bool(machine.ran("update")) == lists_are_old


@pytest.mark.skipif(os.name == "nt", reason="Debian is not Windows")
def test_a_failing_apt_get_is_shown_with_the_other_ways(
    no_pebble: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_debian(no_pebble)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.answers["install"] = lambda command: (100, "E: Could not resolve the mirror")

    with pytest.raises(LabError, match=r"Could not resolve the mirror(.|\n)*go install") as error:
        bootstrap.ensure_pebble()

    assert error.value.exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="Debian is not Windows")
def test_without_root_the_package_is_unpacked_beside_the_lab(
    no_pebble: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_debian(no_pebble)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder = bootstrap.PRIVATE / "pebble"

    def download(command: list[str]) -> tuple[int, str]:
        (folder / "pebble_2.4.0_amd64.deb").touch()
        return 0, ""

    def unpack(command: list[str]) -> tuple[int, str]:
        assert command == ["dpkg-deb", "-x", str(folder / "pebble_2.4.0_amd64.deb"), str(folder)]
        add_program(folder / "usr" / "bin" / "pebble")
        return 0, ""

    machine.answers |= {"download": download, "-x": unpack}

    assert bootstrap.ensure_pebble() == str(folder / "usr" / "bin" / "pebble")
    assert not machine.ran("install")
    assert not list(folder.glob("*.deb"))
    assert bootstrap.PRIVATE.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name == "nt", reason="Debian is not Windows")
def test_without_root_and_without_a_download_both_ways_are_said(
    no_pebble: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_debian(no_pebble)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.answers["download"] = lambda command: (100, "E: Can't find a source to download")

    with pytest.raises(LabError, match=r"Can't find a source(.|\n)*as root(.|\n)*go install"):
        bootstrap.ensure_pebble()


def test_the_stamp_is_whole_or_not_there(machine: Machine) -> None:
    enter(*REQUIREMENTS)

    assert set(json.loads(bootstrap.STAMP.read_text())) == {*REQUIREMENTS, "folder"}
    assert [path.name for path in bootstrap.VENV.iterdir()] == ["lab-stamp.json"]
