"""The exercises: every solution is run as a learner would type it, and judged before and after."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, clean_environment
from test_lab_up import ANY_PORTS, Up

from lab import LabError
from lab.check import Ca, Work, exercises
from lab.check.steps import Step

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the solutions are for a POSIX shell")

FOLDER = ROOT / "lab" / "exercises"
NAMES = [f"{number}-{kind}" for number in exercises.EXERCISES for kind in ("predict", "break")]
# The story in parts that can be told at the same time: what was run before -> the exercises that follow.
PARTS = {
    "": NAMES[:12],
    "01 02 03 04 05 06": NAMES[12:20],
    "01 02 03 04 05 06 07 08 09": NAMES[20:],
}


class Room:
    """A learner's place: a lab that is up, the scripts and lab.ini in one folder, and a shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for script in SCRIPTS.values():
            (folder / script.name).symlink_to(script)
        (folder / "common").symlink_to(ROOT / "common")
        # "python3 lab …" of the solutions is the lab of this repository, with this folder in place of its own.
        lab = f'shift; exec "{sys.executable}" "{ROOT / "lab"}" "$@" --directory "{folder}"'
        for name, text in {"python": f'exec "{sys.executable}" "$@"', "python3": lab}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        self.environment = {**clean_environment(), "PATH": f"{programs}:{os.environ['PATH']}"}

    def run(self, commands: str) -> "subprocess.CompletedProcess[str]":
        """Type some commands; what they print and the exit code of the last."""
        return subprocess.run(
            ["sh", "-c", commands],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def judge(self, name: str, *answer: str) -> Step:
        work = Work(self.folder / "lab.ini", Ca(self.folder / ".lab"))
        return exercises.look_at(work, name, answer)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    up = Up(tmp_path, *ANY_PORTS)
    try:
        up.read_until("Ctrl-C")
        yield Room(tmp_path)
    finally:
        up.end(signal.SIGINT)


def solution(name: str) -> str:
    return (FOLDER / "solutions" / f"{name}.sh").read_text(encoding="utf-8")


def exercise(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def answer(name: str) -> list[str]:
    """What the solution predicts, where that is the same in every lab."""
    return solution(name).splitlines()[-1].partition(name)[2].split()


@pytest.mark.parametrize(("before", "names"), PARTS.items(), ids=["01-06", "07-10", "11-13"])
def test_every_exercise_is_done_with_its_solution_and_not_before(before: str, names: list[str], room: Room):
    for number in before.split():
        assert room.run(f"python {SCRIPTS[number].name}").returncode == 0, number
    for name in names:
        predicts = name.endswith("predict")
        early = room.judge(name, *(["0"] if name == "11-predict" else answer(name)))
        assert early.state == "not yet", early

        commands = solution(name)
        if not predicts:
            # The first remark is on what is broken; what follows mends it.
            broken = re.match(r"(?:[^#\n]*\n)*.*#.*\n", commands)[0]
            room.run(broken)
            assert room.judge(name).state != "done", name
            commands = commands.removeprefix(broken)

        run = room.run(commands)

        assert run.returncode == 0, f"{name}\n{run.stdout}"
        assert f"done     {name}  " in run.stdout, run.stdout
        assert "Traceback" not in run.stdout, run.stdout
        if predicts:
            assert room.judge(name).state == "not yet"
            missed = room.judge(name, "elsewhere")
            assert missed.state == "wrong"
            # It does not tell what is right.
            assert not set(re.findall(r"[\w.]+", missed.text + missed.hint)) & set(answer(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_says_how_it_is_checked_and_links_its_solution(name: str):
    text = exercise(name)
    number, _, kind = name.partition("-")
    assert text.startswith(f"# {number}, {kind}: ")
    assert f"python3 lab check {name}" in text
    assert text.endswith(f"(solutions/{name}.sh).\n")
    assert ("**Predict:**" in text) == (kind == "predict")
    assert solution(name).splitlines()[-1].startswith(f"python3 lab check {name}")
    # Every command in it that is the scripts' own, the solution runs; so a learner can type them as they stand.
    for line in re.findall(r"^python \d\d_\w+\.py.*$", text, re.MULTILINE):
        assert line in solution(name), line


def test_the_code_of_an_exercise_is_the_code_that_its_solution_runs():
    (code,) = re.findall(r"```python\n(.*?)```", exercise("05-break"), re.DOTALL)
    assert code in solution("05-break")


def test_the_list_of_exercises_is_whole_and_every_file_is_one_of_them():
    listed = re.findall(r"\[([^]]+)\]\((\d\d-\w+)\.md\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert [name for _, name in listed] == NAMES
    for title, name in listed:
        assert exercise(name).splitlines()[0].endswith(f": {title}")
    assert {path.stem for path in FOLDER.glob("*.md")} == {*NAMES, "README"}
    assert {path.stem for path in (FOLDER / "solutions").iterdir()} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("1", "01-predict and 01-break"),
        ("05", "05-predict and 05-break"),
        ("01-mend", "01-break"),
        ("14-break", "13-break"),
        ("break", "01-predict, 01-break"),
    ],
)
def test_an_exercise_that_is_none_is_told_which_there_are(name: str, there: str):
    with pytest.raises(LabError, match=f"there is no exercise {name}; there are .*{there}") as refusal:
        exercises.look_at(None, name, [])  # type: ignore[arg-type] - the work is not looked at
    assert refusal.value.exit_code == 2
