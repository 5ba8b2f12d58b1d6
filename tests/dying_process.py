"""Run a script that dies at one instant, as in a power cut: right before a change on disk, or a request.

python dying_process.py INSTANTS PATTERN script.py arguments ...

INSTANTS: a file that gets a line for each instant that was reached: its number, what was about to happen, to what
PATTERN: the process kills itself when the lines so far match; "never" lets it live
"""

import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.symlink", "os.link", "http.client.send")


def die_at(pattern: str, instants: Path) -> None:
    """Python tells its audit hooks of every change and request before it is made: no call can be forgotten."""
    file = instants.open("w", encoding="utf-8", buffering=1)
    lines: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        # Of a rename or a link the second argument is the new name; of a request it is what is sent.
        what = arguments[0 if event == "os.remove" else 1]
        if isinstance(what, bytes):
            what = what[:200].partition(b"\r\n")[0].decode("ascii", errors="replace")
        lines.append(f"{len(lines) + 1} {event} {what}")
        file.write(lines[-1] + "\n")
        if re.search(pattern, "\n".join(lines)):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    instants, pattern, *command = sys.argv[1:]
    die_at(pattern, Path(instants))
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")
