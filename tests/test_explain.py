"""--explain: what a teacher would say before each call."""

import ast
import re
from pathlib import Path

import pytest
from conftest import SCRIPTS, Learner

from common.explain import EXPLANATIONS
from lab import Lab

ROOT = Path(__file__).resolve().parent.parent
SPEAKS_FOR_ITSELF = {"summary"}


def topics(file: Path) -> set[str]:
    """What a file gives to show.step() and show.explain(), without the domain or version in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("show.step", "show.explain"):
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            words = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            found.add("".join(words).rpartition(": ")[2].strip())
    return found - {""}


def actions(file: Path) -> set[str]:
    return set(re.findall(r"import (\w+)Request\n", file.read_text()))


def test_every_step_has_an_explanation_and_every_explanation_a_step():
    files = [
        *(script for number, script in SCRIPTS.items() if number != "00"),
        *(ROOT / "common").glob("*.py"),
    ]
    headings = set().union(*map(topics, files)) - SPEAKS_FOR_ITSELF
    assert headings <= EXPLANATIONS.keys()
    assert EXPLANATIONS.keys() - headings <= set().union(*map(actions, files))


@pytest.mark.parametrize("text", EXPLANATIONS.values(), ids=EXPLANATIONS.keys())
def test_an_explanation_is_a_few_whole_sentences(text: str):
    assert text.endswith((".", "?", ".)"))
    assert len(text) < 450


def test_each_heading_is_followed_by_what_it_is_for(lab: Lab, tmp_path: Path):
    learner = Learner(tmp_path / "learner", lab, certificate={"key_type": "ec256"})
    for number in ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "12"):
        lines = learner.run(number, "--explain").err.splitlines()
        headings = [n for n, line in enumerate(lines) if re.match(rf"{number}  \S", line)]
        assert headings
        told = [line for line in lines if line.startswith("    | ")]
        assert told and all(len(line) <= 110 for line in told)
        for n in headings:
            # The second domain's steps are those of the first.
            again = any(
                lines[m][4:59].rpartition(": ")[2] == lines[n][4:59].rpartition(": ")[2]
                for m in headings
                if m < n
            )
            assert lines[n + 1].startswith("    | ") or again, lines[n]
        assert len(told) == len(set(told)), "nothing is said twice"


def test_quiet_and_explain_exclude_each_other_and_without_it_nothing_is_explained(learner: Learner):
    assert "not allowed with" in learner.run("01", "--quiet", "--explain", code=2).err
    assert "    | " not in learner.run("01").err
