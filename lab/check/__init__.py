"""`python3 lab check`: a look from outside at a learner's work, step by step or exercise by exercise.

The scripts' word counts for nothing here: the CA, the name servers, the edges and the files are asked. What is wrong
gets a hint, and never the solution.
"""

import argparse
import collections
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lab import LabError, bootstrap
from lab.check import exercises, steps
from lab.check.steps import Step
from lab.check.work import Ca, Work

# Between two looks with --watch.
PAUSE_SECONDS = 1.0
STYLES = {"done": "green", "wrong": "bold red", "not yet": "dim"}


def run(options: argparse.Namespace) -> int:
    """Look at the steps, once or again and again, or at one exercise.

    The exit code is 1 when a step was done wrongly, or when the exercise is not done.
    """
    folder = Path(options.directory or bootstrap.ROOT).absolute()
    settings = folder / "lab.ini"
    console = Console(highlight=False)
    if not settings.exists():
        raise LabError(f"no lab is up in {folder}; start one in another terminal: python3 lab up", 2)
    try:
        ca = Ca(folder / ".lab")
        if options.watch:
            return watch(console, settings, ca)
        if options.exercise:
            step = exercises.look_at(Work(settings, ca), options.exercise, options.answer)
            console.print(lines(step), soft_wrap=True)
            return int(step.state != "done")
        found = steps.look_at(Work(settings, ca))
        console.print(picture(found), soft_wrap=True)
        return int(any(step.state == "wrong" for step in found))
    except OSError as error:
        if not settings.exists():
            raise LabError(f"the lab in {folder} has ended") from None
        # urllib has the reason within its own error.
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or cause
        raise LabError(f"the lab in {folder} does not answer: {reason}") from None


def watch(console: Console, settings: Path, ca: Ca) -> int:
    """Look until Ctrl-C, and show what has changed as soon as it has."""
    shown = Text()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                try:
                    seen = picture(steps.look_at(Work(settings, ca)))
                except LabError as error:
                    # A slip of the editor in lab.ini; it will be mended in a moment.
                    seen = Text(str(error))
                if seen != shown and console.is_terminal:
                    live.update(seen + Text("\nlooking every second; Ctrl-C ends it", "dim"), refresh=True)
                elif seen != shown:
                    console.print(seen, soft_wrap=True)
                shown = seen
                time.sleep(PAUSE_SECONDS)
    except KeyboardInterrupt:
        return 0


def picture(found: Sequence[Step]) -> Text:
    """All steps, and how many of them are in which state."""
    counts = collections.Counter(step.state for step in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    return Text("\n").join([*map(lines, found), Text(f"\n{summary}")])


def lines(step: Step) -> Text:
    """One step: its state, and what was seen; a hint where it was done wrongly."""
    text = Text().append(f"{step.state:<7}", STYLES[step.state])
    text.append(f"  {step.name}  {step.title:<22}  {step.text}")
    if step.hint:
        text.append(f"\n{'':<7}  {'hint':>{len(step.name)}}  {step.hint}", "yellow")
    return text
